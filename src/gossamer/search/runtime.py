"""What it takes to store and run the compressed checkpoint beside the unchanged model, and what that says.

These figures depend on the machine and the moment: no step of the run folder, plan or checkpoint depends on them.
"""

from collections.abc import Mapping

from gossamer.core.outcome import Measure
from gossamer.core.units import format_bytes
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
    """What the times are of and whether they differ, in a sentence for each engine; then one on each that could not be
    taken."""
    native = {stage: ratio for stage, ratio in running.ratios.items() if stage.startswith(ENGINE)}
    plain = {stage: ratio for stage, ratio in running.ratios.items() if stage not in native}
    differ = any(not ratio.low <= 1 <= ratio.high for ratio in plain.values())
    found = "are not expected to run faster there, yet the times differ" if differ else "do not run faster there"
    said = [f"{RUNTIME}: smaller weights {found}{_shares(plain)}."]
    if native:
        before, after = (figures["engine_weight_bytes"].value for figures in running.figures)
        bytes_ = f"{format_bytes(int(before))} before and {format_bytes(int(after))} after"
        said.append(
            f"The native engine (gossamer generate, gossamer serve) computes with packed weights as they are: the "
            f"decoder's take {bytes_}{_shares(native)}."
        )
    return [*said, *running.notes]


ENGINE = "engine_"
"""How the names of the native engine's stages begin."""


def _shares(ratios: Mapping[str, Measure]) -> str:
    shares = ", ".join(
        f"{stage.removeprefix(ENGINE).removesuffix('_ms')} {ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
        for stage, ratio in ratios.items()
    )
    return f" (time after / before: {shares})" if shares else ""
