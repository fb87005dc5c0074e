"""The power of the array's cells while they multiply: their gates' toggles on operands of a trained model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossamer.accelerator.simulate import sources
from gossamer.dataflow.engine import IntegerEngine
from gossamer.eda.design import Design
from gossamer.eda.power import Power, estimate_power

CYCLES = 3000
_MODEL, _BLOCK = "tiny-lm", 2


@dataclass(frozen=True)
class Operands:
    """What a cell is given cycle by cycle: `left` and `right` int8 (cycles, depth), and how many `chunks` of a row make
    one sum."""

    left: NDArray[np.int8]
    right: NDArray[np.int8]
    chunks: int
    data: str


def cell_power(engine: IntegerEngine, liberty: Path, operands: Operands, frequency_hz: float) -> Power:
    """Of one cell of the engine's array, which multiplies 8-bit operands in every cycle. Raises as `estimate_power`."""
    cycles, depth = operands.left.shape
    at = np.arange(cycles) % operands.chunks
    inputs = {
        "a_i": _port(operands.left, 9),
        "w_i": _port(operands.right, 8),
        "add_i": np.ones(cycles, int),
        "first_i": (at == 1 % operands.chunks).astype(int),
        "last_i": (at == 0).astype(int),
        **{name: np.zeros(cycles, int) for name in ("four_bit_i", "drain_i", "low_i", "high_i")},
        "scale_i": np.ones(cycles, int),
    }
    design = Design(sources(), "gs_cell", {"DEPTH": depth, "FOUR_BIT": int(engine.four_bit)})
    return estimate_power(design, liberty, inputs, frequency_hz, clock="clk_i")


def array_power(engine: IntegerEngine, liberty: Path, frequency_hz: float) -> dict[str, Any]:
    """The power of all cells on the operands of a trained model, as the report of a synthesis has it."""
    operands = real_operands(engine.depth)
    one = cell_power(engine, liberty, operands, frequency_hz)
    cells = engine.rows * engine.columns
    return {
        "method": one.method,
        "data": operands.data,
        "cycles": one.cycles,
        "activity": one.activity,
        "estimated": {
            "frequency_mhz": frequency_hz / 1e6,
            "pj_per_mac": 1e12 * one.total_w / frequency_hz / engine.depth,
            "array_mw": 1e3 * one.total_w * cells,
            "array_parts_mw": {
                name: 1e3 * watts * cells
                for name, watts in (
                    ("switching", one.switching_w),
                    ("internal", one.internal_w),
                    ("clock", one.clock_w),
                    ("leakage", one.leakage_w),
                )
            },
        },
    }


def random_operands(depth: int) -> Operands:
    """Even bytes, 24 chunks to a sum."""
    left, right = np.random.default_rng(0).integers(-128, 128, (2, CYCLES, depth)).astype(np.int8)
    return Operands(left, right, 24, "random bytes")


def real_operands(depth: int) -> Operands:
    """What a cell sees of a matrix of tiny-lm that reads its held-out text: rows of the matrix's inputs by one column
    of its weights, both rounded to 8 bits."""
    import torch

    from gossamer.accelerator.quantize.quantize import examples_of
    from gossamer.evaluate.tasks import open_task
    from gossamer.models.open import open_model

    opened = open_model(_MODEL)
    seen: list[torch.Tensor] = []
    decoder: Any = opened.model.model
    layer = decoder.layers[_BLOCK].mlp.up_proj
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    task = open_task("text", opened.defaults["data"], opened, limit=1)
    with torch.no_grad():
        opened.model(examples_of(task, 1)[0]["input_ids"][None])
    handle.remove()
    rows = seen[0].flatten(0, -2)
    width = rows.shape[1] // depth * depth
    left = _rounded(rows[:, :width]).reshape(-1, depth)[:CYCLES]
    right = _rounded(layer.weight[0, :width].detach()).reshape(-1, depth)
    turns = -(-len(left) // len(right))
    data = f"{_MODEL}, up_proj of block {_BLOCK}, its held-out text"
    return Operands(left, np.tile(right, (turns, 1))[: len(left)], len(right), data)


def _rounded(values: Any) -> NDArray[np.int8]:
    rounded: NDArray[np.int8] = (values / values.abs().max() * 127).round().numpy().astype(np.int8)
    return rounded


def _port(operands: NDArray[np.int8], width: int) -> NDArray[Any]:
    """Operands (cycles, depth) side by side in a port, `width` bits each, as `Model.run` takes it."""
    cycles, depth = operands.shape
    size = depth * width
    bits = np.zeros((cycles, 64 if size <= 64 else -(-size // 32) * 32), np.uint8)
    bits[:, :size] = (operands.astype(np.int64)[:, :, None] >> np.arange(width) & 1).reshape(cycles, size)
    words = np.packbits(bits, axis=1, bitorder="little")
    return words.view(np.uint64).ravel() if size <= 64 else words.view(np.uint32)
