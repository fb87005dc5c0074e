"""How stacks make a model: which reads pixels, which reads tokens, where the one's rows go in the other."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Wiring:
    """`vision` and `text` name the stacks that read pixels and tokens; where there are both, the rows of `vision` stand
    in `text` for the tokens `image_token`, in order. `side`: pixels along a patch. `counts`: whose logits are the
    model's, all rows' or the first's.
    """

    vision: str | None = None
    text: str | None = None
    image_token: int | None = None
    side: int = 0
    counts: Literal["all", "first"] = "all"


def patches_of(pixels: Tensor, side: int) -> Tensor:
    """Pixels (I, channels, H, W) → patches (I, P, channels · side · side), row by row, channels first."""
    return functional.unfold(pixels, side, stride=side).transpose(1, 2)
