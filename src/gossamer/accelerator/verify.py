"""An integer model run three ways, on tensors, step by step and in RTL, and compared: outputs and every byte of
memory.

A model with a tower writes its rows where the language model's prefill reads them; a causal one then writes tokens,
each by one run of the same program, greedily.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gossamer.accelerator.golden import tensors
from gossamer.accelerator.golden.arithmetic import Ints
from gossamer.accelerator.golden.machine import Machine
from gossamer.accelerator.integer_model import IntegerModel
from gossamer.accelerator.program import OuterMemory, Program, StackImages, check, images, lower_decode, lower_prefill
from gossamer.accelerator.simulate import Run, Simulation
from gossamer.core.errors import SettingError
from gossamer.core.progress import SILENT, Progress
from gossamer.dataflow.cycles.program import schedule_cycles
from gossamer.dataflow.engine import UNITS, IntegerEngine
from gossamer.dataflow.schedule import Gemm

Bytes = NDArray[np.uint8]


@dataclass
class Phase:
    """Runs of one kind. Cycles are the RTL's counter, `model_cycles` the cycle model's; `macs` those that the model
    needs."""

    runs: int = 0
    cycles: int = 0
    model_cycles: int = 0
    macs: int = 0
    busy: dict[str, int] = field(default_factory=lambda: dict.fromkeys(UNITS, 0))
    beats_read: int = 0
    beats_written: int = 0


@dataclass
class Verified:
    """What was found. `mismatches`: values in which RTL, golden machine and golden tensors differ, and bytes of the
    outer memory in which the first two do."""

    mismatches: int = 0
    tokens: list[int] = field(default_factory=list)
    phases: dict[str, Phase] = field(default_factory=dict)

    @property
    def cycles(self) -> int:
        return sum(phase.cycles for phase in self.phases.values())

    @property
    def model_cycles(self) -> int:
        return sum(phase.model_cycles for phase in self.phases.values())


def verify(
    model: IntegerModel,
    engine: IntegerEngine,
    example: Mapping[str, Tensor],
    new_tokens: int = 0,
    *,
    rtl: bool = True,
    stalls: float = 0.0,
    seed: int = 0,
    end: Sequence[int] = (),
    progress: Progress = SILENT,
) -> Verified:
    """Runs one example, and `new_tokens` tokens after it.

    Args:
        model: the integer model.
        engine: the engine's shape.
        example: `input_ids` (S,), `pixel_values` (I, channels, H, W), what the model reads of both.
        new_tokens: tokens written after the first, greedily; 0 for models that write none.
        rtl: whether the RTL is run; else the golden machine stands for it, and cycles are the model's.
        stalls: probability of a wait on each side of each handshake, in a cycle; model cycles hold at 0.
        seed: of the stalls and of what registers hold at the start.
        end: tokens that end the writing.

    Raises:
        SettingError: a model that does not fit the engine; an example that the model cannot read.
    """
    return _Bench(model, engine, rtl, stalls, seed, progress).run(example, new_tokens, end)


class _Bench:
    def __init__(
        self, model: IntegerModel, engine: IntegerEngine, rtl: bool, stalls: float, seed: int, progress: Progress
    ) -> None:
        self.model, self.engine, self.progress = model, engine, progress
        self.found = Verified()
        self.simulation: Simulation | None = None
        if rtl:
            progress.say("compiling the engine")
            self.simulation = Simulation(engine, stalls=stalls, seed=seed)
        self.golden = self.outer = np.zeros(0, np.uint8)

    def run(self, example: Mapping[str, Tensor], new_tokens: int, end: Sequence[int]) -> Verified:
        wiring, outer = self.model.wiring, OuterMemory(self.engine)
        text = tower = None
        tokens: NDArray[np.int64] = np.zeros(0, np.int64)
        if wiring.text is not None:
            if "input_ids" not in example:
                raise SettingError("this model reads tokens: give a prompt")
            tokens = example["input_ids"].numpy()
            stack = self.model.stacks[wiring.text]
            text = images(stack, outer, rows=len(tokens), context=len(tokens) + new_tokens)
            if new_tokens and not (text.causal and text.head is not None):
                raise SettingError(f"{stack.name} writes no tokens: ask for 0")
        runs: list[tuple[Program, NDArray[np.int8]]] = []
        if wiring.vision is not None and "pixel_values" in example:
            patches = self.model.patches(example["pixel_values"])
            tower = images(self.model.stacks[wiring.vision], outer, rows=patches.shape[1])
            runs = self._tower_runs(tower, patches, text, tokens)
        prefill = None if text is None else lower_prefill(text, self.engine, len(tokens), outputs="all")
        decode = lower_decode(text, self.engine) if text is not None and new_tokens else None
        programs = [*(program for program, _ in runs), *(each for each in (prefill, decode) if each is not None)]
        if not programs:
            raise SettingError("this model reads images: give one")
        self.golden = programs[0].image()
        self.outer = self.golden.copy()
        for program in programs:
            check(program.schedule, len(self.golden), program.most)
        return self._compare(runs, text, tokens, prefill, decode, new_tokens, end)

    def _tower_runs(
        self, tower: StackImages, patches: NDArray[np.int8], text: StackImages | None, tokens: NDArray[np.int64]
    ) -> list[tuple[Program, NDArray[np.int8]]]:
        if text is None:
            return [(lower_prefill(tower, self.engine, patches.shape[1], outputs="all"), image) for image in patches]
        places = np.flatnonzero(tokens == self.model.wiring.image_token)
        each = len(places) // len(patches)
        spans = places.reshape(len(patches), each)
        if len(places) != each * len(patches) or (np.diff(spans, axis=1) != 1).any():
            raise SettingError("an image's tokens must follow each other in the prompt")
        made = []
        for span, image in zip(spans, patches, strict=True):
            output = text.input.part(int(span[0]), each)
            made.append((lower_prefill(tower, self.engine, patches.shape[1], output=output), image))
        return made

    def _compare(
        self, runs: list[tuple[Program, NDArray[np.int8]]], text: StackImages | None, tokens: NDArray[np.int64],
        prefill: Program | None, decode: Program | None, new_tokens: int, end: Sequence[int],
    ) -> Verified:  # fmt: skip
        model, depth = self.model, self.engine.depth
        seen: list[Ints] = []
        if prefill is not None and text is not None:
            self._write(prefill, tensors.look_up(text.stack, tokens))
        for program, image in runs:
            self._write(program, image)
            self._run("tower", program)
            stack = model.stacks[model.wiring.vision or ""]
            seen.append(tensors.run(stack, tensors.patch_rows(stack, image), depth))
            self._equal(program, seen[-1])
        if prefill is None or text is None:
            return self.found
        cache = tensors.Cache()
        rows = tensors.look_up(text.stack, tokens)
        if seen:
            rows[tokens == model.wiring.image_token] = np.concatenate(seen)
        self._run("prefill", prefill)
        logits = tensors.run(text.stack, rows, depth, cache=cache)
        self._equal(prefill, logits)
        for step in range(new_tokens):
            token = int(np.argmax(logits[-1]))
            self.found.tokens.append(token)
            if token in end or decode is None:
                break
            self.progress.say(f"token {step + 1} of {new_tokens}")
            self._run("decode", decode, (token, len(tokens) + step))
            logits = tensors.run(text.stack, tensors.look_up(text.stack, [token]), depth, cache=cache)
            self._equal(decode, logits)
        return self.found

    def _write(self, program: Program, rows: NDArray[np.integer]) -> None:
        for memory in (self.golden, self.outer):
            program.layout["input"].write(memory, rows)

    def _run(self, name: str, program: Program, registers: Sequence[int] = ()) -> None:
        phase = self.found.phases.setdefault(name, Phase())
        Machine(self.engine, self.golden, registers).run(program.schedule)
        modelled = schedule_cycles(program.schedule, registers)
        ran = Run(modelled.total, modelled.busy, 0, 0)
        if self.simulation is not None:
            ran = self.simulation.run(self.outer, program.address, program.count, registers)
        else:
            self.outer[:] = self.golden
        phase.runs += 1
        phase.cycles += ran.cycles
        phase.model_cycles += modelled.total
        phase.macs += multiplies(program, registers)
        phase.beats_read += ran.beats_read
        phase.beats_written += ran.beats_written
        for unit, cycles in ran.busy.items():
            phase.busy[unit] += cycles
        self.found.mismatches += int(np.count_nonzero(self.golden != self.outer))

    def _equal(self, program: Program, wanted: Ints) -> None:
        got = program.layout["output"].read(self.outer)
        self.found.mismatches += int(np.count_nonzero(got[: len(wanted), : wanted.shape[1]] != wanted))


def multiplies(program: Program, registers: Sequence[int] = ()) -> int:
    """Multiply-accumulates of a program's products, without the padding of tiles."""
    values = (0, *registers)
    steps = [step for step in program.schedule if isinstance(step, Gemm)]
    return sum(step.m * prod(step.sizes(values[step.register])) for step in steps)
