"""How sure the first blocks must be, and how many they are, so that few tokens differ from the whole model's.

Learn then Test (Angelopoulos et al. 2021, arXiv 2110.01052), as CALM uses it (arXiv 2207.07061): thresholds are tested
from the strictest down, and the last one before the first failure is taken. If the examples are drawn as those to come
are, the mean share of differing tokens stays below `risk` in all but `error` of all calibrations.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gossamer.core.errors import DataError, SettingError
from gossamer.core.progress import SILENT, Progress
from gossamer.evaluate.divergence import example_means
from gossamer.evaluate.task import Task, forward
from gossamer.operate.early_exit.decode import EarlyExit, margins
from gossamer.operate.speculate.self_draft import first_blocks, language_blocks

if TYPE_CHECKING:
    from torch import Tensor, nn

ERROR = 0.05
"""How often a calibration may be wrong."""
GRID = (0.995, *(step / 100 for step in range(99, -1, -1)))
"""The thresholds that are tested, in this order."""
DEPTHS = (0.25, 0.5, 0.75)
"""Shares of the blocks after which leaving is tried."""


@dataclass(frozen=True)
class Calibration:
    """The cheapest way to leave early of those whose risk was shown, on `examples`; None where none was.

    `early`: the share of tokens that would leave, `differ`: of all tokens, those that would leave with another one than
    the whole model's likeliest. `cost`: a token's time by that of the whole model, counted in blocks: those that it
    passes, and where it does not leave all of them again.
    """

    way: EarlyExit | None
    risk: float
    error: float
    examples: int
    early: float = 0.0
    differ: float = 0.0
    cost: float = math.inf

    @property
    def pays(self) -> bool:
        """Whether it is faster than the whole model, as far as blocks tell."""
        return self.cost < 1

    def described(self) -> dict[str, Any]:
        """JSON-able."""
        return {**asdict(self), "cost": None if self.way is None else self.cost, "pays": self.pays}


def calibrate(
    model: nn.Module, task: Task, risk: float, error: float = ERROR, progress: Progress = SILENT
) -> Calibration:
    """Reads the task's examples as they stand, by the whole model and by its first blocks, and compares the likeliest
    tokens at every place that counts.

    `risk` and `error` lie in (0, 1). Raises `SettingError` if they do not, or if the model has a single block,
    `ModelError` for one whose language blocks are not known, and `DataError` for less than the `fewest` examples.
    """
    for name, value in (("risk", risk), ("error", error)):
        if not 0 < value < 1:
            raise SettingError(f"{name} {value} is not possible: give a share above 0 and below 1")
    total = len(language_blocks(model))
    depths = _depths(total)
    if len(task) < (needed := fewest(risk, error)):
        raise DataError(
            f"{len(task)} examples cannot show that under {risk:.3g} of the tokens differ: {needed} are needed at least"
        )
    best = Calibration(None, risk, error, len(task))
    for blocks, (margin, differs, owners) in _read(model, task, depths, progress).items():
        safe = None
        for threshold in GRID:
            lost = example_means((margin >= threshold) & differs, owners, len(task)).numpy()
            if p_value(lost[~np.isnan(lost)], risk, error / len(DEPTHS)) > error / len(DEPTHS):
                break
            safe = threshold
        if safe is None:
            continue
        early = float((margin >= safe).double().mean())
        differ = float(((margin >= safe) & differs).double().mean())
        cost = blocks / total + 1 - early
        if cost < best.cost:
            best = Calibration(EarlyExit(blocks, safe), risk, error, len(task), early, differ, cost)
    return best


def fewest(risk: float, error: float = ERROR) -> int:
    """The number of examples that could show a risk if none of their tokens differed."""
    return math.ceil(math.log(len(DEPTHS) / error) / math.log1p(risk))


def p_value(losses: NDArray[np.float64], risk: float, error: float = ERROR) -> float:
    """Of the hypothesis that losses in [0, 1] have a mean of `risk` or more, by independent ones: of a bet against it
    that is fair if it holds, one by the largest capital on the way (Waudby-Smith and Ramdas 2020, arXiv 2010.09686,
    sections 3.1 and 4.3). Stakes follow the spread so far, so that shares that hardly vary tell more than yes and no;
    they are best for the level `error`, and right for every one."""
    n = len(losses)
    number = np.arange(1, n + 1)
    means = (0.5 + losses.cumsum()) / (number + 1)
    spread = np.concatenate([[0.25], (0.25 + ((losses - means) ** 2).cumsum()) / (number + 1)])[:-1]
    stakes = np.minimum(1.0, np.sqrt(2 * math.log(1 / error) / (n * spread)))
    capital = np.log1p(-stakes * (losses - risk)).cumsum()
    return math.exp(-max(0.0, float(capital.max(initial=0.0))))


def _depths(total: int) -> tuple[int, ...]:
    """The numbers of blocks to try, of so many; where there are none `first_blocks` says what is wrong."""
    return tuple(sorted({max(1, round(total * share)) for share in DEPTHS} - {total})) or (1,)


def _read(
    model: nn.Module, task: Task, depths: tuple[int, ...], progress: Progress
) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
    """For each depth, at all places: how sure its blocks are, whether their likeliest token differs from the whole
    model's, and the place's example."""
    import torch

    shorter = {blocks: first_blocks(model, blocks) for blocks in depths}
    found: dict[int, list[tuple[Tensor, Tensor]]] = {blocks: [] for blocks in depths}
    owners = []
    size = getattr(task, "batch_size", 8)
    for batch in progress.track(task.batches(size), "calibrating early exit", -(-len(task) // size)):
        whole = task.log_probs(forward(model, batch, use_cache=False), batch).argmax(-1).cpu()
        owners.append(task.owners(batch))
        for blocks, each in shorter.items():
            log_probs = task.log_probs(forward(each, batch, use_cache=False), batch)
            found[blocks].append((margins(log_probs).cpu(), log_probs.argmax(-1).cpu() != whole))
    owner = torch.cat(owners)
    read = {}
    for blocks, pairs in found.items():
        margin, differs = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        read[blocks] = (margin, differs, owner)
    return read
