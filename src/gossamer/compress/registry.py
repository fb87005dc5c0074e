"""All techniques of this room by name. Importing this registers them."""

from gossamer.compress import decompose, distill, prune, quantize, structure, transform
from gossamer.compress.passes import Phase
from gossamer.core.technique import class_of, known_techniques

ROOMS = (decompose, distill, prune, quantize, structure, transform)


def techniques() -> dict[str, Phase]:
    """Name → phase of every technique of this room, by name."""
    return {name: phase for name in known_techniques() if (phase := getattr(class_of(name), "phase", None)) is not None}
