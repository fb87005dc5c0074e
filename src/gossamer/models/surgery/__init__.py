"""Making a model's shapes smaller so that plain `transformers` still builds, loads and runs it.

The result is an ordinary model of the same class: what its config says builds it. Which entries of the config say it is
found by building, on the meta device, the models that changed entries describe; what no config describes is refused.
Only widths that differ by block have an entry of our own, and a class that reads it (see `widths.py`).
"""

from gossamer.models.surgery.blocks import drop_blocks
from gossamer.models.surgery.experts import experts_of
from gossamer.models.surgery.narrow import narrow
from gossamer.models.surgery.rebuild import Reshaped, adopt
from gossamer.models.surgery.units import Part, Units, channels_of, heads_of, tower_of

__all__ = [
    "Part",
    "Reshaped",
    "Units",
    "adopt",
    "channels_of",
    "drop_blocks",
    "experts_of",
    "heads_of",
    "narrow",
    "tower_of",
]
