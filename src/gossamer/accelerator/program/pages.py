"""Programs longer than the instruction ring: two halves of the ring in turn, one is run while the other is loaded."""

from collections.abc import Sequence

from gossamer.accelerator.isa import BYTES
from gossamer.dataflow.engine import IntegerEngine
from gossamer.dataflow.schedule import Fence, Load, Space, Step, Tensor


def paged(steps: Sequence[Step], engine: IntegerEngine, address: int) -> list[Step]:
    """The steps, with loads of the instruction ring where there are more than it holds.

    What boots the engine loads the first `engine.instructions` from `address`: pages 0 and 1. Page p ≥ 1 begins by
    loading page p + 1 over page p − 1, whose steps have all been issued, and ends by waiting for it.
    """
    if len(steps) <= engine.instructions:
        return list(steps)
    page = engine.instructions // 2
    rest = list(steps)
    pages: list[list[Step]] = []
    while rest:
        # all but the first page and the last need two places for a load and a fence
        size = page if not pages or len(rest) <= page else page - 2
        pages.append(rest[:size])
        rest = rest[size:]
    out = list(pages[0])
    for number, body in enumerate(pages[1:], 1):
        if number + 1 == len(pages):
            return out + body
        following = len(pages[number + 1]) + (2 if number + 2 < len(pages) else 0)
        half = (number + 1) % 2 * page
        out.append(
            Load(
                address=address + (number + 1) * page * BYTES,
                to=Tensor(half * BYTES // engine.bus_bytes, 0),
                count=-(-following * BYTES // engine.bus_bytes),
                space=Space.INSTRUCTIONS,
            )
        )
        out += [*body, Fence(load=True, store=False, compute=False)]
    return out
