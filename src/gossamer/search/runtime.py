"""What it takes to store and run the compressed checkpoint beside the unchanged model, and what that says.

These figures depend on the machine and the moment: no step of the run folder, plan or checkpoint depends on them.
"""

from gossamer.core.outcome import Measure
from gossamer.evaluate.meters import disk_bytes
from gossamer.evaluate.running import RUNTIME, Running
from gossamer.models.checkpoint import Stored
from gossamer.models.open import Opened


def sides(opened: Opened, stored: Stored, running: Running) -> tuple[dict[str, Measure], dict[str, Measure]]:
    """The figures of the model as it came and of the checkpoint `stored`.

    `weight_disk_bytes` and `weight_memory_bytes` are bytes, `STAGE_ms` milliseconds (see `evaluate.running`);
    `STAGE_ms_ratio`, among the checkpoint's, is its time by the unchanged model's.
    """
    before, after = running.figures
    ratios = {f"{stage}_ratio": ratio for stage, ratio in running.ratios.items()}
    return (
        {"weight_disk_bytes": Measure.exact(opened.stored_bytes), **before},
        {"weight_disk_bytes": Measure.exact(disk_bytes(stored.directory)), **after, **ratios},
    )


def sentences(running: Running) -> list[str]:
    """What the times are of and whether they differ, in one sentence; then one on each that could not be taken."""
    differ = any(not ratio.low <= 1 <= ratio.high for ratio in running.ratios.values())
    found = "are not expected to run faster there, yet the times differ" if differ else "do not yet run faster there"
    shares = ", ".join(
        f"{stage.removesuffix('_ms')} {ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
        for stage, ratio in running.ratios.items()
    )
    measured = f" (time after / before: {shares})" if shares else ""
    return [f"{RUNTIME}: smaller weights {found}{measured}.", *running.notes]
