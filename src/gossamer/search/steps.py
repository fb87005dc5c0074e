"""The steps of the search, each a function from what the run folder holds to what it holds next."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from gossamer.compress.calibrate import Stream, layers_by_step
from gossamer.core.errors import RequirementError
from gossamer.evaluate.task import Task
from gossamer.search.allocate import allocate
from gossamer.search.bank import Bank
from gossamer.search.evolution import evolve
from gossamer.search.front import Point, allocations, options_of, undefeated
from gossamer.search.guard import Contender, Verdict, judge
from gossamer.search.job import Job
from gossamer.search.propose import halving, population
from gossamer.search.refine import Refined, Round, refine
from gossamer.search.scorer import Score
from gossamer.search.sensitivity import Sensitivity, step_of_unit
from gossamer.search.tiered import tiered
from gossamer.search.units import Assignment, Costs, assignment_of, describe, fits, total_bytes

FRONT_POINTS = 14


FINALISTS = 4
"""Proposals that are compared on the `confirm` part too."""


def _measured(job: Job, bank: Bank, assignment: Assignment, part: str, share: float = 1.0) -> Score:
    return job.score(bank.assignment(assignment), part, share)


def pareto(job: Job, bank: Bank, sensitivity: Sensitivity) -> tuple[list[Point], list[Point]]:
    """The front of allocated plans, and the uniform ones, measured on the `select` part with the bank's candidates."""
    choices = allocations(job.units, options_of(job.units, sensitivity.kl), FRONT_POINTS, job.room[1:])

    def compute() -> Any:
        found = []
        for chosen in job.progress.track(choices, "pareto front"):
            score = _measured(job, bank, assignment_of(job.units, chosen), "select")
            found.append([score.mean_kl, score.kl_stderr])
        return found

    scores = job.folder.step("front", [job.key, choices], compute)
    points = [
        Point(
            "allocated",
            assignment_of(job.units, chosen),
            job.fixed + total_bytes(job.units, chosen),
            sum(sensitivity.kl[u][c] for u, c in enumerate(chosen)),
            kl,
            stderr,
        )
        for chosen, (kl, stderr) in zip(choices, scores, strict=True)
    ]
    return undefeated(points), _uniforms(job, bank, sensitivity)


def _uniforms(job: Job, bank: Bank, sensitivity: Sensitivity) -> list[Point]:
    schemes = job.runtime.uniform
    assignments = [job.uniform(scheme) for scheme in schemes]

    def compute() -> Any:
        found = []
        for assignment in job.progress.track(assignments, "uniform baselines"):
            score = _measured(job, bank, assignment, "select")
            found.append([score.mean_kl, score.kl_stderr])
        return found

    scores = job.folder.step("uniform", [job.key, job.runtime.name, [describe(scheme) for scheme in schemes]], compute)
    points = []
    for scheme, assignment, (kl, stderr) in zip(schemes, assignments, scores, strict=True):
        predicted = sum(sensitivity.kl[u][c] for u, c in enumerate(job.choices(assignment)))
        size = job.bytes_of(assignment)
        points.append(Point(f"uniform {describe(scheme)}", assignment, size, predicted, kl, stderr))
    return points


def room_of(job: Job, bank: Bank, points: Sequence[Point]) -> Costs:
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
            after = task.summarise(job.results(bank.assignment(point.assignment), task))[task.metric].value
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


def allocated(job: Job, bank: Bank, sensitivity: Sensitivity, room: Costs) -> Refined:
    """The best proposal within `room`, refined by measuring around it.

    The proposals are exact allocations (see `propose`) and the uniform setting that fills the budget best. The
    `select` part thins them to a few, and the divergence on it and `confirm` together decides.
    """
    options = options_of(job.units, sensitivity.kl)
    proposals = population(options, room, job.sizes.proposals, job.request.seed)
    proposals += [chosen for chosen in _uniform_start(job, room) if chosen not in proposals]

    def evaluate(part: str, share: float = 1.0) -> Any:
        return lambda chosen: _measured(job, bank, assignment_of(job.units, chosen), part, share)

    def compute() -> Any:
        select, confirm = evaluate("select"), evaluate("confirm")
        track = partial(job.progress.track, stage="compare whole plans")
        finalists = halving(
            proposals, FINALISTS, lambda chosen, share: evaluate("select", share)(chosen).mean_kl, track
        )
        found = refine(
            job.units,
            min(finalists, key=lambda chosen: select(chosen).mean_kl + confirm(chosen).mean_kl),
            room,
            job.sizes.rounds,
            select,
            confirm,
            partial(_neighbours, job, bank),
        )
        return {"chosen": found.chosen, "rounds": [asdict(item) for item in found.rounds]}

    record = job.folder.step("refine", [job.key, room, proposals, job.sizes.rounds], compute)
    return Refined(tuple(record["chosen"]), tuple(Round(**item) for item in record["rounds"]))


def searched(
    job: Job, bank: Bank, sensitivity: Sensitivity, room: Costs, exact: Sequence[int]
) -> tuple[Sequence[int], str | None]:
    """The choice that the request's kind of search finds, and a sentence that compares it with the `exact` one.

    All kinds share the bank and measure whole plans on the `select` part; the comparison is on `confirm`.
    """
    kind = job.request.search
    if kind == "exact":
        return exact, None
    options = options_of(job.units, sensitivity.kl)
    track = partial(job.progress.track, stage=f"{kind} search")
    spent = 0.0

    def measure(chosen: Sequence[int], share: float) -> float:
        nonlocal spent
        spent += share
        return _measured(job, bank, assignment_of(job.units, chosen), "select", share).mean_kl

    def compute() -> Any:
        if kind == "tiered":
            found = tiered(job.units, options, room, measure, track)
        else:
            start = (_uniform_start(job, room) or [allocate(options, room)])[0]
            rounds = job.sizes.proposals
            found = evolve(job.units, start, room, measure, rounds, rounds, job.request.seed, track)
        both = [_measured(job, bank, assignment_of(job.units, plan), "confirm").mean_kl for plan in (found, exact)]
        return {"chosen": found, "kl": both, "evaluations": spent}

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


def _neighbours(job: Job, bank: Bank, chosen: Sequence[int], others: Sequence[Sequence[int]]) -> list[list[float]]:
    """The divergence of `chosen` with one unit moved, for each of its `others`, on the `select` part.

    One walk through the compressed model: only what follows the moved unit is run again.
    """
    scorer = job.scorer("select")
    steps = layers_by_step(job.walk, job.opened.hierarchy)
    owners = [-1 if (step := step_of_unit(unit, steps)) is None else step for unit in job.units]
    found: list[list[float]] = [[] for _ in job.units]
    present = bank.assignment(assignment_of(job.units, chosen))
    with job.holding(present) as swap:
        stream = Stream(job.walk, scorer.batches)
        # Units that the data never reaches stay with the first step: moving them changes nothing.
        order = sorted(range(len(job.units)), key=lambda u: owners[u])
        for u in job.progress.track(order, "refine around the plan"):
            while stream.step < owners[u]:
                stream.advance()
            for move in others[u]:
                moved = bank.load(job.units[u].choices[move].schemes)
                swap.put_only(job.units[u].layers, moved)
                found[u].append(scorer.score(stream.output).mean_kl)
            swap.put_only(job.units[u].layers, present)
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
