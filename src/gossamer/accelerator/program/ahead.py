"""Loads of constants come before stores and what waits for these, so that the memory port does not rest."""

from collections.abc import Sequence

from gossamer.accelerator.program.access import Access, Where, accesses
from gossamer.accelerator.program.draft import Draft
from gossamer.dataflow.engine import IntegerEngine
from gossamer.dataflow.schedule import Load, Step, Store, unit


def constants_first(draft: Draft, most: Sequence[int] = ()) -> Draft:
    """The draft with, between two computations, the loads of what no step stores moved to the front.

    Behind a store they would wait at a fence that has nothing to do with them. They keep their order; what they write
    to is not in use yet. `most`: greatest value of each register.
    """
    engine = draft.engine
    stored = [a for step, _ in draft.steps if isinstance(step, Store) for a in _outer(step, engine, most)]

    def constant(step: Step) -> bool:
        return isinstance(step, Load) and not any(
            mine.start < its.stop and its.start < mine.stop for mine in _outer(step, engine, most) for its in stored
        )

    places, computed = [], 0
    for i, (step, _) in enumerate(draft.steps):
        computed += unit(step) == "compute"
        places.append((computed, unit(step) != "compute" and not constant(step), i))
    out = Draft(engine)
    out.steps = [draft.steps[i] for *_, i in sorted(places)]
    return out


def _outer(step: Step, engine: IntegerEngine, most: Sequence[int]) -> list[Access]:
    return [access for access in accesses(step, engine, most) if access.where == Where.OUTER]
