"""The steps of the search, each a function from what the run folder holds to what it holds next."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from gossamer.compress.calibrate import layers_by_step
from gossamer.core.errors import RequirementError
from gossamer.evaluate.task import Task
from gossamer.search.allocate import allocate
from gossamer.search.evolution import evolve
from gossamer.search.front import Point, allocations, options_of, undefeated
from gossamer.search.guard import Contender, Verdict, judge
from gossamer.search.job import Job
from gossamer.search.propose import Measure, halving, population
from gossamer.search.refine import Refined, Round, refine
from gossamer.search.scorer import Score
from gossamer.search.sensitivity import Sensitivity, step_of_unit
from gossamer.search.tiered import tiered
from gossamer.search.trials import Trial, Trials, move
from gossamer.search.units import Assignment, Costs, assignment_of, describe, fits, total_bytes

FRONT_POINTS = 14


FINALISTS = 4
"""Proposals that are compared on the `confirm` part too."""


def pareto(job: Job, trials: Trials, sensitivity: Sensitivity) -> tuple[list[Point], list[Point]]:
    """The front of allocated plans, and the uniform ones, measured on the `select` part with the bank's candidates."""
    choices = allocations(job.units, options_of(job.units, sensitivity.kl), FRONT_POINTS, job.room[1:])
    assignments = [assignment_of(job.units, chosen) for chosen in choices]
    scores = trials.plans(assignments, "select", stage="pareto front")
    points = [
        Point(
            "allocated",
            assignment,
            job.fixed + total_bytes(job.units, chosen),
            sum(sensitivity.kl[u][c] for u, c in enumerate(chosen)),
            kl,
            stderr,
        )
        for chosen, assignment, (kl, stderr, _) in zip(choices, assignments, scores, strict=True)
    ]
    return undefeated(points), _uniforms(job, trials, sensitivity)


def _uniforms(job: Job, trials: Trials, sensitivity: Sensitivity) -> list[Point]:
    schemes = job.runtime.uniform
    assignments = [job.uniform(scheme) for scheme in schemes]
    scores = trials.plans(assignments, "select", stage="uniform baselines")
    points = []
    for scheme, assignment, (kl, stderr, _) in zip(schemes, assignments, scores, strict=True):
        predicted = sum(sensitivity.kl[u][c] for u, c in enumerate(job.choices(assignment)))
        size = job.bytes_of(assignment)
        points.append(Point(f"uniform {describe(scheme)}", assignment, size, predicted, kl, stderr))
    return points


def room_of(job: Job, trials: Trials, points: Sequence[Point]) -> Costs:
    """What the plan may take: under the limits, or where there is only a quality floor as much as the smallest front
    point that keeps it on the `confirm` part.

    Raises `RequirementError` if no point keeps it.
    """
    if job.limits.stated:
        return job.room
    floor = job.budget.max_loss_percent
    assert floor is not None
    task: Task = job.parts.confirm

    def compute() -> Any:
        before = task.summarise(task.results(job.opened.model))[task.metric].value
        for point in job.progress.track(points, "smallest size within the floor"):
            after = task.summarise(job.results(trials.bank.assignment(point.assignment), task))[task.metric].value
            if loss_percent(task, before, after) <= floor:
                return point.weight_bytes
        return None

    found = job.folder.step("floor", [job.key, floor, [point.weight_bytes for point in points]], compute)
    if found is None:
        raise RequirementError(f"no plan keeps the quality floor of {floor} %: allow more loss")
    return job.room_within(int(found))


def loss_percent(task: Task, before: float, after: float) -> float:
    """How far `after` falls behind: percentage points for figures where higher is better (shares), else percent."""
    return 100 * (before - after) if task.higher_is_better else 100 * (after / before - 1)


def allocated(job: Job, trials: Trials, sensitivity: Sensitivity, room: Costs) -> Refined:
    """The best proposal within `room`, refined by measuring around it.

    The proposals are exact allocations (see `propose`) and the uniform setting that fills the budget best. The
    `select` part thins them to a few, and the divergence on it and `confirm` together decides.
    """
    options = options_of(job.units, sensitivity.kl)
    proposals = population(options, room, job.sizes.proposals, job.request.seed)
    proposals += [chosen for chosen in _uniform_start(job, room) if chosen not in proposals]

    select, confirm = (_measure(job, trials, part, "compare whole plans") for part in ("select", "confirm"))

    def compute() -> Any:
        finalists = halving(proposals, FINALISTS, select)
        both = np.add(select(finalists, 1.0), confirm(finalists, 1.0))
        found = refine(
            job.units,
            finalists[int(np.argmin(both))],
            room,
            job.sizes.rounds,
            lambda chosen: select([chosen], 1.0)[0],
            lambda chosen: confirm([chosen], 1.0)[0],
            partial(_neighbours, job, trials),
        )
        return {"chosen": found.chosen, "rounds": [asdict(item) for item in found.rounds]}

    record = job.folder.step("refine", [job.key, room, proposals, job.sizes.rounds], compute)
    return Refined(tuple(record["chosen"]), tuple(Round(**item) for item in record["rounds"]))


def searched(
    job: Job, trials: Trials, sensitivity: Sensitivity, room: Costs, exact: Sequence[int]
) -> tuple[Sequence[int], str | None]:
    """The choice that the request's kind of search finds, and a sentence that compares it with the `exact` one.

    All kinds share the bank and measure whole plans on the `select` part; the comparison is on `confirm`.
    """
    kind = job.request.search
    if kind == "exact":
        return exact, None
    options = options_of(job.units, sensitivity.kl)
    track = partial(job.progress.track, stage=f"{kind} search")
    select, confirm = (_measure(job, trials, part) for part in ("select", "confirm"))
    spent: dict[tuple[float, ...], float] = {}

    def measure(choices: Sequence[Sequence[int]], share: float) -> Sequence[float]:
        spent.update({(*chosen, share): share for chosen in choices})
        return select(choices, share)

    def compute() -> Any:
        if kind == "tiered":
            found = tiered(job.units, options, room, measure, track)
        else:
            start = (_uniform_start(job, room) or [allocate(options, room)])[0]
            rounds = job.sizes.proposals
            found = evolve(job.units, start, room, measure, rounds, rounds, job.request.seed, track)
        return {"chosen": found, "kl": confirm([found, exact], 1.0), "evaluations": sum(spent.values())}

    record = job.folder.step("search", [job.key, kind, room, list(exact), job.sizes.proposals], compute)
    ours, other = record["kl"]
    text = (
        f"The plan was found by {kind} search: KL {ours:.4g} nats on the confirmation part after "
        f"{record['evaluations']:.0f} evaluations of whole plans; the exact allocation has {other:.4g}."
    )
    return record["chosen"], text


def _uniform_start(job: Job, room: Costs) -> list[list[int]]:
    """The largest uniform setting within `room` as a choice of every unit; none if none fits."""
    plans = [job.choices(job.uniform(scheme)) for scheme in job.runtime.uniform]
    fitting = [plan for plan in plans if fits(job.units, plan, room)]
    return [max(fitting, key=lambda plan: total_bytes(job.units, plan))] if fitting else []


def _measure(job: Job, trials: Trials, part: str, stage: str | None = None) -> Measure:
    """The mean divergences of whole choices on a share of a part."""

    def measure(choices: Sequence[Sequence[int]], share: float) -> list[float]:
        plans = [assignment_of(job.units, chosen) for chosen in choices]
        return [kl for kl, *_ in trials.plans(plans, part, share, stage if len(plans) > 1 else None)]

    return measure


def _neighbours(job: Job, trials: Trials, chosen: Sequence[int], others: Sequence[Sequence[int]]) -> list[list[float]]:
    """The divergence of `chosen` with one unit moved, for each of its `others`, on the `select` part.

    One walk through the compressed model: only what follows the moved unit is run again.
    """
    steps = layers_by_step(job.walk, job.opened.hierarchy)
    moves: dict[int, list[tuple[int, int]]] = {}
    for u, unit in enumerate(job.units):
        # Units that the data never reaches stay with the first step: moving them changes nothing.
        step = -1 if (step := step_of_unit(unit, steps)) is None else step
        moves.setdefault(step, []).extend((u, c) for c in others[u])
    present = assignment_of(job.units, chosen)
    asked = [
        Trial("select", present, step, tuple(move(job.units[u], c) for u, c in moves[step])) for step in sorted(moves)
    ]
    found: list[list[float]] = [[] for _ in job.units]
    for trial, rows in zip(asked, trials(asked, "refine around the plan"), strict=True):
        for (u, _), (kl, *_) in zip(moves[trial.step], rows, strict=True):
            found[u].append(kl)
    return found


def contend(job: Job, label: str, assignment: Assignment) -> Contender:
    """An assignment really applied, layer after layer, and scored on the `guard` part."""
    steps = job.steps(assignment)
    applied = job.applier(steps, job.progress)

    def compute() -> Any:
        score = job.score(applied.tensors, "guard")
        return {"kl": score.kl.tolist(), "loss": score.loss.tolist(), "weight": score.weight.tolist()}

    record = job.folder.step("guard", [job.key, [dict(step) for step in steps]], compute)
    score = Score(*(np.array(record[name]) for name in ("kl", "loss", "weight")))
    return Contender(label, job.bytes_of(assignment), assignment, applied, score)


def guarded(job: Job, chosen: Assignment, uniforms: Sequence[Point], room: Costs) -> Verdict:
    """The searched plan, or the best uniform one within `room` if that is better on fresh data."""
    affordable = [point for point in uniforms if fits(job.units, job.choices(point.assignment), room)]
    best = sorted(affordable, key=lambda point: point.kl)[:1]
    searched = contend(job, "the searched plan", chosen)
    return judge(searched, [contend(job, point.label, point.assignment) for point in best])
