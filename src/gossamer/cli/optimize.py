"""`gossamer optimize`: the smallest version that keeps its quality."""

import shlex
import sys
from functools import partial
from pathlib import Path

from gossamer.cli.options import (
    Context,
    Data,
    Device,
    DryRun,
    Effort,
    EffortOption,
    Energy,
    Granularity,
    GranularityOption,
    Json,
    Latency,
    MaxLoss,
    Memory,
    Model,
    On,
    Out,
    PeakMemory,
    Ratio,
    Ray,
    Runtime,
    RuntimeOption,
    Search,
    SearchOption,
    Seed,
    Task,
    Technique,
    TechniqueOption,
    TestData,
    Threads,
    Transform,
    TransformOption,
)
from gossamer.cli.terminal import Result, figures, job, line, named, notes, quantity, show, spread, table
from gossamer.core.errors import RequirementError

EXAMPLE = "gossamer optimize tiny-vlm --memory 3MB --max-loss 1% --out runs/tiny-vlm"


def command(
    model: Model,
    out: Out,
    memory: Memory = None,
    ratio: Ratio = None,
    peak_memory: PeakMemory = None,
    latency: Latency = None,
    energy: Energy = None,
    device: Device = None,
    context: Context = None,
    max_loss: MaxLoss = None,
    task: Task = None,
    data: Data = None,
    test_data: TestData = None,
    granularity: GranularityOption = Granularity.auto,
    effort: EffortOption = Effort.standard,
    technique: TechniqueOption = Technique.qronos,
    search: SearchOption = Search.exact,
    transform: TransformOption = Transform.none,
    runtime: RuntimeOption = Runtime.transformers,
    dry_run: DryRun = False,
    seed: Seed = 0,
    on: On = "cpu",
    ray: Ray = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Compress a model under a budget, and prove it.

    Finds which layers bear how few bits, applies that, measures the result after reloading it, exports it and writes
    a report. Interrupted at any moment, the same command resumes where it was and ends with the same bytes.
    """
    with job(threads) as progress:
        from gossamer.report.build import write_report
        from gossamer.search.optimize import optimize
        from gossamer.search.request import OptimizeRequest

        request = OptimizeRequest(
            model=model,
            out=out,
            task=task,
            data=data,
            test_data=test_data,
            weight_bytes=memory,
            ratio=ratio,
            peak_memory_bytes=peak_memory,
            latency_ms=latency,
            energy_mj=energy,
            device=device,
            context=context,
            max_loss_percent=max_loss,
            seed=seed,
            granularity=granularity.value,
            effort=effort.value,
            technique=technique.value,
            search=search.value,
            transform=transform.value,
            runtime=runtime.value,
            dry_run=dry_run,
            on=on,
            ray=ray,
            command=shlex.join(["gossamer", *sys.argv[1:]]),
        )
        result = optimize(request, progress)
        if not dry_run:
            write_report(out, result)
    show(result, as_json, draw_plan if dry_run else partial(draw, out))
    for requirement in result.get("unmet", ()):
        raise RequirementError(requirement)


def draw(out: Path, result: Result) -> None:
    """Prints before and after, then where the files are."""
    before, after = result["baseline"]["measured"], result["measured"]
    rows = [
        (named(key), *(quantity(key, side.get(key, "")) for side in (before, after)))
        for key in dict.fromkeys([*before, *after])
        if not key.endswith("_ratio")  # the notes tell them
    ]
    rows += [
        (f"{named(key)}, estimated", *(quantity(key, side["estimated"][key]) for side in (result["baseline"], result)))
        for key in result["estimated"]
    ]
    table(f"Measured [{spread(after)}]", ("", "before, 16 bits", "after"), rows)
    notes(result)
    line(f"took: {quantity('_s', result['seconds'])}, {quantity('_bytes', result['peak_memory_bytes'])} of memory")
    for name in ("plan", "checkpoint", "report"):
        line(f"{name}: {out / result[name]}")


def draw_plan(result: Result) -> None:
    """Prints what a dry run found."""
    figures("Dry run: nothing was written", {**result["budget"], **result["estimated"]})
    line("Examples: " + ", ".join(f"{named(part)} {count}" for part, count in result["data"].items()))
