"""How fast models write on a GPU: products on packed weights by themselves, and whole models with recorded steps.

Run on a machine with a CUDA GPU and Triton: PYTHONPATH=src python3 benchmarks/gpu.py [--sweep] [--out DIR]
Writes gpu.json, gpu_kernels.md and gpu_models.md to DIR (benchmarks/results). Needs no packages but Gossamer's own and
Triton. `--sweep` first tries tiles for the kernels, writes all to gpu_sweep.json, prints the table `WAYS` of
`gossamer.engine.gpu.product` that it would be by what was measured, and goes on with that.

A product is timed inside a CUDA graph of many, which go round copies of the weight that fill the cache several times
over; a figure is the median of several replays. Its share of the bandwidth counts weight, inputs and outputs, once
each, against a plain copy in the same run. Errors are the largest difference from float32, of the largest value: for
models of the logits, over a prompt and some given tokens. Models have random weights, which say nothing of quality (and
have many a tie among their best tokens: what they write differs by the last bit of 16); sides take turns, a figure is
the median of the rounds, the first of which, where kernels are chosen, is told apart in gpu.json.
"""

import argparse
import copy
import itertools
import json
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gossamer.core.files import write_json, write_text
from gossamer.engine.gpu.captured import Captured, CapturedStepper
from gossamer.engine.gpu.layers import PackedLinear
from gossamer.engine.gpu.packed import Layout, PackedWeight
from gossamer.engine.gpu.product import WAYS, Way, product, run
from gossamer.engine.stepping import Stepper

RESULTS = Path(__file__).resolve().parent / "results"
SHAPES = ((4096, 4096), (11008, 4096), (576, 1536))
COUNTS = (1, 4, 16, 128, 512)
SWEPT = (1, 4, 16, 32, 64, 128, 512)
GRIDS = ((4, 128), (4, 32), (8, 128))
FILLING = 256 << 20
"""Bytes that copies of a weight take together: several times the largest cache."""


class Cell(NamedTuple):
    """One product: rows of inputs, the weight's shape and grid."""

    count: int
    rows: int
    columns: int
    bits: int
    group: int

    @property
    def weight_bytes(self) -> float:
        """Bytes of the packed weight."""
        return self.rows * self.columns * (self.bits / 8 + 2 / self.group)

    def weight(self, seed: int = 0) -> PackedWeight:
        """A random weight."""
        draw = torch.Generator("cuda").manual_seed(seed)
        layout = Layout.of(self.rows, self.columns, self.bits, self.group)
        shape = (self.rows, layout.chunks * layout.span)
        words = torch.randint(-(2**31), 2**31, shape, dtype=torch.int32, device="cuda", generator=draw)
        scales = torch.rand(self.rows, self.columns // self.group, device="cuda", generator=draw) + 0.5
        return PackedWeight(layout, words, (scales / (self.columns**0.5 * 2**self.bits)).half())

    def inputs(self) -> Tensor:
        """Random inputs (count, columns), bfloat16."""
        draw = torch.Generator("cuda").manual_seed(1)
        return torch.randn(self.count, self.columns, device="cuda", generator=draw).bfloat16()


def candidates(count: int) -> Iterator[Way]:
    """The kernels and tiles that are tried for so many rows of inputs."""
    if count == 1:
        for rows, words, warps in itertools.product((1, 2, 4, 8), (128, 256, 512), (2, 4, 8)):
            if 8 <= rows * words // (32 * warps) <= 32:
                yield Way(count, "vector", {"rows": rows, "words": words, "warps": warps})
    elif count <= 128:
        tile = min(64, max(16, count))
        for rows, words, splits, warps in itertools.product((16, 32, 64), (32, 64), (1, 2, 4, 8), (4,)):
            if rows * words <= 2048 and (tile == 16 or (rows > 16 and splits <= 4)):
                tiles = {"count": tile, "rows": rows, "words": words, "splits": splits, "warps": warps}
                yield Way(count, "matrix", tiles)
    if count >= 16:
        for rows, words in ((2, 256), (4, 128), (4, 256), (8, 128)):
            yield Way(count, "expand", {"rows": rows, "words": words, "warps": 4})


def timed(calls: Sequence[Callable[[], Any]], replays: int = 5) -> float:
    """Seconds of one call: all are recorded as a graph, whose median replay counts."""
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    found = []
    for _ in range(replays):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        found.append(begin.elapsed_time(end) / 1e3 / len(calls))
    return statistics.median(found)


def around(size: float, least: int = 8, most: int = 600) -> int:
    """How many copies of a weight of `size` bytes are gone round."""
    return max(least, min(most, math.ceil(FILLING / size)))


def copy_bandwidth() -> float:
    """Bytes per second, read and written, of a plain copy of a gigabyte."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / timed([lambda: target.copy_(source)] * 4)


def copies_of(weight: PackedWeight, number: int) -> list[PackedWeight]:
    """The weight again and again, at other addresses."""
    return [PackedWeight(weight.layout, weight.words.clone(), weight.scales.clone()) for _ in range(number)]


def compile_all(jobs: Sequence[tuple[Cell, Way]]) -> None:
    """Has other processes compile the kernels, which Triton keeps on disk."""
    unique: dict[Any, tuple[Cell, Way]] = {}
    for cell, way in jobs:
        unique.setdefault((cell.bits, cell.group, way.kernel, *sorted(way.tiles.items())), (cell, way))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(12, context) as pool:
        list(pool.map(compiled, unique.values(), chunksize=4))


def compiled(job: tuple[Cell, Way]) -> None:
    """Runs one product, whatever comes of it."""
    cell, way = job
    try:
        run(way, cell.inputs(), cell.weight())
    except Exception as error:
        print(f"{cell} {way}: {type(error).__name__} {str(error)[:120]}", file=sys.stderr)


def sweep() -> list[dict[str, Any]]:
    """Tries all candidates, sets `WAYS` to what is best over the shapes, and returns what was measured."""
    cells = [Cell(count, *shape, *grid) for grid in GRIDS for shape in SHAPES for count in SWEPT]
    start = time.perf_counter()
    compile_all([(cell, way) for cell in cells for way in candidates(cell.count)])
    print(f"compiled in {time.perf_counter() - start:.0f} s", flush=True)
    rows = []
    for grid, shape in itertools.product(GRIDS, SHAPES):
        weights = copies_of(Cell(1, *shape, *grid).weight(), around(Cell(1, *shape, *grid).weight_bytes, most=128))
        for count in SWEPT:
            cell = Cell(count, *shape, *grid)
            x = cell.inputs()
            for way in candidates(count):
                try:
                    seconds = timed([lambda w=w, x=x, way=way: run(way, x, w) for w in weights], 3)
                except Exception as error:
                    print(f"{cell} {way}: {type(error).__name__} {str(error)[:120]}", flush=True)
                    continue
                rows.append({**cell._asdict(), "kernel": way.kernel, "tiles": way.tiles, "us": 1e6 * seconds})
    for width in (4, 8):
        found = [best(rows, width, count) for count in SWEPT]
        merged: list[Way] = []
        for way in found:  # neighbours that agree become one
            if merged and merged[-1][1:] == way[1:]:
                merged.pop()
            merged.append(way)
        merged[-1] = merged[-1]._replace(most=math.inf)
        WAYS[width] = tuple(merged)
    WAYS[2] = WAYS[4]
    for width in (4, 8):
        print(f"    {width}: (")
        for way in WAYS[width]:
            most = 'float("inf")' if way.most == math.inf else int(way.most)
            print(f'        Way({most}, "{way.kernel}", {json.dumps(way.tiles)}),')
        print("    ),", flush=True)
    return rows


def by_product(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Microseconds by kernel and tiles, by product."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        product = f"{row['count']} by {row['rows']} × {row['columns']}, {row['bits']} bits in {row['group']}"
        tiles = " ".join(f"{name}={value}" for name, value in row["tiles"].items())
        found.setdefault(product, {})[f"{row['kernel']} {tiles}"] = round(row["us"], 2)
    return found


def best(rows: Sequence[dict[str, Any]], width: int, count: int) -> Way:
    """The way whose times, by the best of each shape and grid, have the least geometric mean."""
    mine = [row for row in rows if (row["bits"], row["count"]) == (width, count)]
    least: dict[Any, float] = {}
    for row in mine:
        place = (row["rows"], row["columns"], row["group"])
        least[place] = min(row["us"], least.get(place, math.inf))
    scores: dict[str, list[float]] = {}
    for row in mine:
        key = json.dumps([row["kernel"], row["tiles"]])
        scores.setdefault(key, []).append(math.log(row["us"] / least[row["rows"], row["columns"], row["group"]]))
    whole = {key: sum(values) for key, values in scores.items() if len(values) == len(least)}
    kernel, tiles = json.loads(min(whole, key=whole.__getitem__))
    return Way(count, kernel, tiles)


def torch_int4(cell: Cell) -> Callable[[Tensor, int], list[Callable[[], Tensor]]] | None:
    """torch's own int4 product, which torchao calls; None where it has none."""
    if cell.bits != 4 or cell.group not in (32, 64, 128, 256) or cell.columns % 1024:
        return None

    def calls(x: Tensor, number: int) -> list[Callable[[], Tensor]]:
        held = torch.randint(0, 255, (cell.rows, cell.columns // 2), dtype=torch.uint8, device="cuda")
        packed = torch.ops.aten._convert_weight_to_int4pack(held, 8)
        scales = torch.full((cell.columns // cell.group, cell.rows, 2), 0.01, dtype=torch.bfloat16, device="cuda")
        weights = [(packed.clone(), scales.clone()) for _ in range(number)]
        return [lambda w=w, s=s: torch.ops.aten._weight_int4pack_mm(x, w, cell.group, s) for w, s in weights]

    return calls


def torch_int8(cell: Cell) -> Callable[[Tensor, int], list[Callable[[], Tensor]]] | None:
    """torch's own int8 product, one scale for each row; None for other bits."""
    if cell.bits != 8:
        return None

    def calls(x: Tensor, number: int) -> list[Callable[[], Tensor]]:
        held = torch.randint(-128, 127, (cell.rows, cell.columns), dtype=torch.int8, device="cuda")
        scales = torch.full((cell.rows,), 0.01, dtype=torch.bfloat16, device="cuda")
        return [
            lambda w=w: torch.ops.aten._weight_int8pack_mm(x, w, scales) for w in [held.clone() for _ in range(number)]
        ]

    return calls


def kernel_row(cell: Cell, bandwidth: float) -> dict[str, Any]:
    """One product by ours, cuBLAS and torch's packed ones."""
    weight, x = cell.weight(), cell.inputs()
    dense = weight.dense()
    expected = x.float() @ dense.T
    sixteen = dense.bfloat16()
    error = [
        float((found.float() - expected).abs().max() / expected.abs().max())
        for found in (product(x, weight), nn.functional.linear(x, sixteen))
    ]
    number = around(cell.weight_bytes)
    seconds = timed([lambda w=w: product(x, w) for w in copies_of(weight, number)])
    others = [sixteen.clone() for _ in range(around(sixteen.nbytes))]
    theirs = timed([lambda w=w: nn.functional.linear(x, w) for w in others])
    del others
    row = {
        **cell._asdict(), "us": 1e6 * seconds, "cublas_us": 1e6 * theirs, "error": error[0], "cublas_error": error[1],
        "share": (cell.weight_bytes + 2 * cell.count * (cell.rows + cell.columns)) / seconds / bandwidth,
    }  # fmt: skip
    for make in (torch_int4(cell), torch_int8(cell)):
        if make is not None:
            try:
                row["torch_us"] = 1e6 * timed(make(x, number))
            except Exception as error_:
                row["torch_says"] = f"{type(error_).__name__}: {str(error_).splitlines()[0][:160]}"
    return row


def kernel_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The rows as Markdown."""
    lines = [
        "| inputs | weight | bits, group | ours µs | of copy | cuBLAS µs | torch's µs | ours is | error | cuBLAS's |",
        "|---:|---|---|---:|---:|---:|---:|---|---:|---:|",
    ]
    for row in rows:
        packed = f"{row['torch_us']:.1f}" if "torch_us" in row else ""
        others = min(row["cublas_us"], row.get("torch_us", math.inf))
        lines.append(
            f"| {row['count']} | {row['rows']} × {row['columns']} | {row['bits']}, {row['group']} | {row['us']:.1f} | "
            f"{row['share']:.0%} | {row['cublas_us']:.1f} | {packed} | {others / row['us']:.2f} × the next | "
            f"{row['error']:.1e} | {row['cublas_error']:.1e} |"
        )
    return lines


def llama(name: str) -> Any:
    """A random Llama in bfloat16 on the GPU."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shapes: dict[str, dict[str, Any]] = {
        "7B, 8 blocks": {
            "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 8, "num_attention_heads": 32,
            "num_key_value_heads": 32, "vocab_size": 32000,
        },
        "1B": {
            "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
            "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True,
        },
    }  # fmt: skip
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = LlamaForCausalLM._from_config(LlamaConfig(**shapes[name]), dtype=torch.bfloat16)
    return model.eval().requires_grad_(False)


def packed_model(model: Any, bits: int) -> None:
    """Packs the blocks' layers: symmetric, groups of 128."""
    from gossamer.models.packed import QuantizedTensor, Scheme

    for block in model.model.layers:
        for parent in (block.self_attn, block.mlp):
            for name, layer in list(parent.named_children()):
                if isinstance(layer, nn.Linear):
                    weight = layer.weight.float()
                    scales = weight.reshape(len(weight), -1, 128).abs().amax(-1).clamp(min=1e-4) / (
                        2 ** (bits - 1) - 0.5
                    )
                    codes = QuantizedTensor.encode(weight, Scheme(bits, 128), scales.half())
                    setattr(parent, name, PackedLinear(PackedWeight.pack(codes)))


class Eager:
    """transformers' own modules with their own growing cache."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def prefill(self, prompts: Sequence[dict[str, Tensor]]) -> Tensor:
        """As `Stepper.prefill`, of prompts of one length."""
        self._past = None
        return self._read(torch.cat([prompt["input_ids"] for prompt in prompts]))

    def step(self, tokens: Sequence[int], moving: Sequence[bool]) -> Tensor:
        """As `Stepper.step`."""
        return self._read(torch.tensor(tokens)[:, None])

    def _read(self, ids: Tensor) -> Tensor:
        output = self._model(
            input_ids=ids.cuda(), past_key_values=self._past, use_cache=True, logits_to_keep=1, return_dict=True
        )
        self._past = output.past_key_values
        return output.logits[:, -1].float()


def decode_rounds(sides: dict[str, Any], prompt: int, new: int, batch: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Prefill and decode of all sides in turn: tokens per second of the median round, and the tokens written."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    tokens: dict[str, list[int]] = {}
    ids = torch.randint(5, 30000, (batch, prompt), generator=torch.Generator().manual_seed(2))
    prompts = [{"input_ids": row[None]} for row in ids]
    for _ in range(rounds + 1):
        for name, side in sides.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            logits = side.prefill(prompts)
            written = [logits.argmax(-1).tolist()]
            middle = time.perf_counter()
            for place in range(new):
                written.append(side.step(written[-1], [True] * batch).argmax(-1).tolist())
                if place == 0:  # a recording is made at the first step of the first round only
                    first = time.perf_counter()
            times[name].append((middle - start, (time.perf_counter() - first) / (new - 1)))
            tokens[name] = [row[0] for row in written]
    return {
        name: {
            "prefill_tokens_per_s": batch * prompt / statistics.median(each[0] for each in times[name][1:]),
            "decode_tokens_per_s": batch / statistics.median(each[1] for each in times[name][1:]),
            "prefill_s": [each[0] for each in times[name]],
            "step_s": [each[1] for each in times[name]],
            "tokens": tokens[name],
        }
        for name in sides
    }


def errors(sides: dict[str, Any], exact: Any, prompt: int = 64, new: int = 16) -> dict[str, float]:
    """The largest difference of any logit from the float32 model's, of the largest logit."""
    draw = torch.Generator().manual_seed(3)
    prompts = [{"input_ids": torch.randint(5, 30000, (1, prompt), generator=draw)}]
    given = torch.randint(5, 30000, (new,), generator=draw).tolist()

    def logits(side: Any) -> Tensor:
        return torch.cat([side.prefill(prompts), *(side.step([token], [True]) for token in given)])

    expected = logits(exact)
    return {name: float((logits(side) - expected).abs().max() / expected.abs().max()) for name, side in sides.items()}


def exact_twin(model: Any) -> Any:
    """The model in float32, with dense layers of what its packed ones stand for."""
    twin = copy.deepcopy(model)
    for name, layer in list(twin.named_modules()):
        if isinstance(layer, PackedLinear):
            dense = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
            dense.weight = nn.Parameter(layer.packed.dense(), requires_grad=False)
            parent, _, child = name.rpartition(".")
            setattr(twin.get_submodule(parent), child, dense)
    return twin.float()


def model_rows(name: str, bandwidth: float, rounds: int) -> list[dict[str, Any]]:
    """One model at 16, 8 and 4 bits on all sides."""
    rows = []
    for bits in (16, 8, 4):
        model = llama(name)
        if bits < 16:
            packed_model(model, bits)
        held = {tensor.data_ptr(): tensor.nbytes for tensor in (*model.parameters(), *model.buffers())}
        looked_up = model.get_input_embeddings().weight
        tied = model.lm_head.weight.data_ptr() == looked_up.data_ptr()
        read = sum(held.values()) - (0 if tied else looked_up.nbytes)
        recorded = Captured(model)(model)
        assert isinstance(recorded, CapturedStepper)
        for batch in (1, 8):
            sides: dict[str, Any] = {"ours, recorded": recorded, "ours, plain": Stepper(model)}
            if bits == 16:
                sides["transformers"] = Eager(model)
            if batch == 1:
                differences = errors(sides, Eager(exact_twin(model)))
                torch.cuda.empty_cache()
            found = decode_rounds(sides, 512, 48, batch, rounds)
            assert recorded._held is not None, "nothing was recorded"
            plain = found["ours, plain"]["tokens"]
            for side, row in found.items():
                same = next(
                    (n for n, (a, b) in enumerate(zip(plain, row["tokens"], strict=True)) if a != b), len(plain)
                )
                share = read * row["decode_tokens_per_s"] / batch / bandwidth
                row |= {"model": name, "bits": bits, "batch": batch, "side": side, "same": same, "share": share}
                row |= {"error": differences[side]}
                rows.append({**row, "tokens": row["tokens"][:16], "bytes_per_step": read})
            print(f"{name} {bits} bits, {batch} sequences done", flush=True)
        del model, recorded, sides
        torch.cuda.empty_cache()
    return rows


def model_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The rows as Markdown."""
    lines = [
        "| model | bits | sequences | side | prefill | decode | by transformers' bf16 | of copy | error |",
        "|---|---:|---:|---|---:|---:|---:|---:|---:|",
    ]
    base = {(r["model"], r["batch"]): r["decode_tokens_per_s"] for r in rows if r["side"] == "transformers"}
    for row in rows:
        ratio = row["decode_tokens_per_s"] / base[row["model"], row["batch"]]
        lines.append(
            f"| {row['model']} | {row['bits']} | {row['batch']} | {row['side']} | {row['prefill_tokens_per_s']:.0f} | "
            f"{row['decode_tokens_per_s']:.0f} | {ratio:.2f} | {row['share']:.0%} | {row['error']:.1e} |"
        )
    return lines


def main() -> None:
    """Runs everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no CUDA GPU here")
    torch.set_grad_enabled(False)
    options.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    device = torch.cuda.get_device_name()
    bandwidth = copy_bandwidth()
    print(f"{device}, torch {torch.__version__}, copy {bandwidth / 1e12:.2f} TB/s", flush=True)
    command = f"python benchmarks/gpu.py {'--sweep ' * options.sweep}--rounds {options.rounds}"
    whole: dict[str, Any] = {
        "command": command, "device": device, "torch": torch.__version__, "copy_bytes_per_s": bandwidth,
    }  # fmt: skip
    about = f"`{command}` on one {device}, torch {torch.__version__}; a plain copy moves {bandwidth / 1e12:.2f} TB/s."

    def write(name: str, lines: Sequence[str]) -> None:
        write_json(options.out / "gpu.json", whole)
        text = "\n".join([about, "", *lines, ""])
        write_text(options.out / f"{name}.md", text)
        print(f"{text}\nafter {time.perf_counter() - start:.0f} s", flush=True)

    if options.sweep:
        write_json(options.out / "gpu_sweep.json", {**whole, "us": by_product(sweep())})
        print(f"swept after {time.perf_counter() - start:.0f} s", flush=True)
    cells = [Cell(count, *shape, *grid) for grid in GRIDS for shape in SHAPES for count in COUNTS]
    whole["kernels"] = [kernel_row(cell, bandwidth) for cell in cells]
    write("gpu_kernels", kernel_table(whole["kernels"]))
    whole["models"] = []
    for name in ("7B, 8 blocks", "1B"):
        whole["models"] += model_rows(name, bandwidth, options.rounds)
        write("gpu_models", model_table(whole["models"]))


if __name__ == "__main__":
    main()
