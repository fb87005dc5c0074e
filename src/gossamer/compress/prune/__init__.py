"""Techniques that set single weights to zero. Importing this registers `magnitude`, `wanda`, `ria`, `sparsegpt` and
`obr`, and `permute`, which orders columns for them."""

from gossamer.compress.prune.magnitude import Magnitude
from gossamer.compress.prune.obr import Obr
from gossamer.compress.prune.permute import Permute
from gossamer.compress.prune.ria import Ria
from gossamer.compress.prune.sparsegpt import SparseGpt
from gossamer.compress.prune.wanda import Wanda

__all__ = ["Magnitude", "Obr", "Permute", "Ria", "SparseGpt", "Wanda"]
