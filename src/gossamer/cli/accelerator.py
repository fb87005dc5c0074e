"""`gossamer accelerator`: integer models, and the engine that runs them."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from gossamer.cli.options import Data, Json, Model, Out, Seed, Task, Threads
from gossamer.cli.terminal import Result, job, line, notes, quantity, show, table
from gossamer.core.errors import RequirementError

app = typer.Typer(help="Integer models, and the engine that runs them.", rich_markup_mode=None, no_args_is_help=True)

EXAMPLE = "gossamer accelerator quantize tiny-lm --out runs/tiny-lm-int8"

Examples = Annotated[int, typer.Option(min=1, metavar="N", help="Examples that the scales are chosen on.")]
Weights = Annotated[int, typer.Option(metavar="BITS", help="Bits of the blocks' weights: 8 or 4.")]
Group = Annotated[int, typer.Option(metavar="COLUMNS", help="Columns of a 4-bit group.")]
Positions = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", show_default="the model's, 2048 at most", help="Rotary positions that are kept."),
]
Part = Annotated[
    str | None,
    typer.Option(metavar="TOWER", show_default=False, help="Of a model of two towers, such as CLIP: vision or text."),
]


@app.command("quantize", epilog=f"Example: {EXAMPLE}")
def quantize(
    model: Model,
    out: Out,
    data: Data = None,
    task: Task = None,
    examples: Examples = 32,
    weights: Weights = 8,
    group: Group = 64,
    positions: Positions = None,
    part: Part = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Turn a model into integers: 8- or 4-bit weights, 8-bit activations, a 16-bit residual stream.

    Scales are static, from calibration data. The result is the golden model's and the engine's, bit for bit.
    """
    with job(threads) as progress:
        from gossamer.accelerator.quantize.quantize import quantize_job
        from gossamer.accelerator.quantize.weights import Precision

        result = quantize_job(
            model, out, task=task, data=data, examples=examples, precision=Precision(weights, group),
            positions=positions, part=part, progress=progress,
        )  # fmt: skip
    show(result, as_json, draw)


def draw(result: Result) -> None:
    """Prints what was made, what it lost, and where it is."""
    for name, stack in result["stacks"].items():
        line(
            f"{name}: {stack['blocks']} blocks of width {stack['width']}, a step of the stream is {stack['scale']:.3g}"
        )
    line(f"logits differ by {result['logit_error']:.2%} (relative, on calibration data)")
    worst = ", ".join(f"{place} {share:.2%}" for place, share in result["saturated_most"].items())
    line(f"saturated: {result['saturated']:.4%} of all values" + (f", most at {worst}" if worst else ""))
    notes(result)
    line(f"integer model: {result['out']}")


Program = Annotated[Path, typer.Argument(metavar="PROGRAM", help="An integer model, made by quantize.")]
Config = Annotated[str, typer.Option(metavar="ENGINE", help="The engine: a YAML file, or a preset (small, large).")]
Technology = Annotated[
    str, typer.Option(metavar="PROCESS", help="Clock and energies: a YAML file, or a preset (sg13g2).")
]


class Phase(StrEnum):
    """What is run."""

    prefill = "prefill"
    decode = "decode"


class Goal(StrEnum):
    """What is to be least."""

    latency = "latency"
    area = "area"
    energy = "energy"


@app.command(
    "simulate",
    epilog='Example: gossamer accelerator simulate runs/tiny-lm-int8 --config small --prompt "Once upon" --tokens 8',
)
def simulate(
    program: Program,
    config: Config = "small",
    tokens: Annotated[int, typer.Option(min=0, metavar="N", help="Tokens written after the prompt.")] = 0,
    prompt: Annotated[str, typer.Option(metavar="TEXT", show_default=False, help="What the model reads.")] = "",
    image: Annotated[
        Path | None, typer.Option(metavar="FILE", show_default=False, help="An image to go with it.")
    ] = None,
    stalls: Annotated[float, typer.Option(metavar="P", help="Probability of a wait at each handshake.")] = 0.0,
    golden: Annotated[bool, typer.Option("--golden", help="Without RTL: golden machine and cycle model only.")] = False,
    seed: Seed = 0,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Run an integer model on the engine's RTL, compare it bit for bit with the golden model, count the cycles.

    Exit code 1 if a single value or byte of memory differs.
    """
    with job(threads) as progress:
        from gossamer.accelerator.simulate_job import simulate_job

        result = simulate_job(
            program, config, tokens=tokens, prompt=prompt, image=image, stalls=stalls, seed=seed, rtl=not golden,
            progress=progress,
        )  # fmt: skip
    show(result, as_json, draw_simulation)
    if result["mismatches"]:
        raise RequirementError(f"{result['mismatches']} values or bytes differ between RTL and golden model")


def draw_simulation(result: Result) -> None:
    """Prints what was written, whether it is right, and the cycles."""
    if result["text"]:
        line(result["text"])
    line(f"{result['simulated']}: {result['mismatches']} mismatches")
    for name, phase in result["phases"].items():
        each = phase["cycles"] // phase["runs"]
        line(
            f"{name}: {phase['runs']} × {each} cycles (cycle model {phase['model_cycles'] // phase['runs']}), "
            f"{phase['utilisation']:.1%} of the multipliers in use"
        )


@app.command("build", epilog="Example: gossamer accelerator build --config small --out runs/engine")
def build(
    out: Out,
    config: Config = "small",
    clock: Annotated[float, typer.Option(min=1, metavar="MHZ", help="What the constraints ask for.")] = 200.0,
    as_json: Json = False,
) -> None:
    """Write an engine as a folder: Verilog, its instance, a self-checking bench, constraints, a README."""
    with job(None):
        from gossamer.accelerator.build import build_job

        result = build_job(config, out, clock)
    show(result, as_json, draw_build)


def draw_build(result: Result) -> None:
    """Prints where it is and how large."""
    line(f"{result['multipliers']} multipliers, {quantity('_bytes', result['sram_bytes'])} of memory: {result['out']}")
    line(f"{len(result['files'])} files; see {result['out']}/README.md for how to run the bench")


@app.command("table1", epilog="Example: gossamer accelerator table1 --config large")
def table1(
    config: Config = "large",
    technology: Technology = "sg13g2",
    as_json: Json = False,
) -> None:
    """Published transformers on an engine, by the cycle model, beside a roofline of a GPU and SwiftTron."""
    with job(None) as progress:
        from gossamer.accelerator.engine_files import ENGINES
        from gossamer.accelerator.table1 import GPU, table1
        from gossamer.dataflow.technology import TECHNOLOGIES

        process = TECHNOLOGIES.load(technology)
        rows = table1(ENGINES.load(config), process, progress=progress)
    show({"rows": rows, "technology": process.model_dump(), "gpu": GPU}, as_json, draw_table1)


def draw_table1(result: Result) -> None:
    """Prints a row a line."""
    clock = result["technology"]["clock_mhz"]
    line(f"estimated by the cycle model at {clock:g} MHz; the GPU's time is the roofline of an {result['gpu']['name']}")
    for row in result["rows"]:
        published = row["swifttron_published_ms"]
        line(
            f"{row['model']} ({row['layers']} blocks), {row['phase']} {row['sequence']}: {row['cycles']:,} cycles, "
            f"{row['utilisation_percent']:.1f} %, {row['latency_ms']:.2f} ms, {row['energy_mj']:.1f} mJ; "
            f"GPU at least {row['gpu_roofline_ms']:.3f} ms"
            + ("" if published is None else f"; SwiftTron, as published: {published} ms")
        )


@app.command(
    "explore", epilog="Example: gossamer accelerator explore deit-s --sequence 197 --budget area=100mm2 --out runs/deit"
)
def explore(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            show_default=False,
            help="A published shape such as deit-s, an integer model, or whatever other verbs take.",
        ),
    ],
    budget: Annotated[
        str, typer.Option(metavar="LIMITS", show_default=False, help="Parts of area=40mm2,latency=5ms,energy=3mJ.")
    ] = "",
    phase: Annotated[Phase, typer.Option(help="All rows at once, or one token after them.")] = Phase.prefill,
    sequence: Annotated[int, typer.Option(min=1, metavar="N", help="Rows (tokens, patches), or positions.")] = 128,
    goal: Annotated[Goal, typer.Option(help="What is to be least within the budget.")] = Goal.latency,
    part: Annotated[
        str | None,
        typer.Option(metavar="TOWER", show_default=False, help="Of a model with both: vision or text (the default)."),
    ] = None,
    config: Annotated[
        str, typer.Option(metavar="ENGINE", help="What is not swept: a YAML file, or a preset (small, large).")
    ] = "large",
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=V,V",
            show_default=False,
            help="Other values of rows, columns, depth, lanes, memory (bytes) or bits; may be given again.",
        ),
    ] = None,
    technology: Technology = "sg13g2",
    areas: Annotated[
        str, typer.Option(metavar="AREAS", help="Area model: a YAML file, or a preset (sg13g2).")
    ] = "sg13g2",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", show_default=False, help="Where engine, report and trace go.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Engines of many sizes for a model: latency, area, energy; the front; the best within a budget.

    DIR gets report.html, engine.yaml for build and simulate, trace.json for Perfetto. Exit code 2 where no engine keeps
    the budget; the nearest one is named.
    """
    with job(None) as progress:
        from gossamer.accelerator.explore_job import explore_job

        result = explore_job(
            model, budget=budget, phase=phase.value, sequence=sequence, part=part, config=config, sweep=sweep or (),
            technology=technology, areas=areas, goal=goal.value, out=out, progress=progress,
        )  # fmt: skip
        if out is not None:
            from gossamer.report.exploration import write_exploration

            result["report"] = str(write_exploration(out, result))
    show(result, as_json, draw_exploration)


def draw_exploration(result: Result) -> None:
    """Prints the front, and what was chosen."""
    table(
        f"{result['shape']['name']}, {result['phase']} {result['sequence']}: beaten by no other of "
        f"{len(result['points'])} engines (estimates)",
        ("array", "lanes", "memory", "bits", "latency", "area, mm²", "energy", "in use"),
        [
            (
                f"{point['rows']} × {point['columns']} × {point['depth']}", str(point["lanes"]),
                quantity("_bytes", point["sram_bytes"]), str(point["bits"]), quantity("_ms", point["latency_ms"]),
                f"{point['area_mm2']:.1f}", quantity("_mj", point["energy_mj"]),
                f"{point['utilisation_percent']:.0f} %",
            )
            for point in result["pareto"]
        ],
    )  # fmt: skip
    chosen = result["chosen"]
    line(
        f"chosen: {chosen['rows']} × {chosen['columns']} × {chosen['depth']}, {chosen['lanes']} lanes, "
        f"{quantity('_bytes', chosen['sram_bytes'])}, {chosen['bits']} bits: {chosen['latency_ms']:.3g} ms, "
        f"{chosen['area_mm2']:.3g} mm², {chosen['energy_mj']:.3g} mJ"
    )
    left_out = sum(result["skipped"].values())
    if left_out:
        reasons = "; ".join(f"{count} × {reason}" for reason, count in result["skipped"].items())
        line(f"{left_out} of {result['tried']} left out: {reasons}")
    for name in ("engine_file", "report", "trace"):
        if name in result:
            line(f"{name.replace('_', ' ')}: {result[name]}")


class Least(StrEnum):
    """What gates are chosen for."""

    area = "area"
    delay = "delay"


@app.command("synthesize", epilog="Example: gossamer accelerator synthesize --config small --liberty cells.lib")
def synthesize(
    liberty: Annotated[Path, typer.Option(metavar="FILE", help="The process: a .lib or .lib.gz file.")],
    config: Config = "small",
    goal: Annotated[Least, typer.Option(help="What the gates are chosen for.")] = Least.area,
    as_json: Json = False,
) -> None:
    """Area by unit, cells and longest paths of an engine, by Yosys and ABC."""
    with job(None) as progress:
        from gossamer.accelerator.synthesis import synthesize_job

        result = synthesize_job(config, liberty, goal.value, progress)
    show(result, as_json, draw_synthesis)


def draw_synthesis(result: Result) -> None:
    """Prints areas and the longest path."""
    for name, unit in result["units"].items():
        line(f"{name}: {unit['area_um2'] / 1e6:.3f} mm²")
    line(f"logic: {result['logic_area_um2'] / 1e6:.3f} mm², {result['sequential_percent']:.0f} % of it registers")
    line(f"longest path: {result['critical_path_ns']:.2f} ns in {result['critical_module']}")
    line(f"memories: {result['sram_bits'] / 8192:.0f} KiB, about {result['estimated']['sram_area_um2'] / 1e6:.2f} mm²")
    power = result["power"]["estimated"]
    line(
        f"array on {result['power']['data']}: about {power['array_mw']:.0f} mW at {power['frequency_mhz']:.0f} MHz, "
        f"{power['pj_per_mac']:.2f} pJ for a multiply-accumulate ({result['power']['method']})"
    )
