"""Techniques that write a weight, or the error in one, as a matrix of low rank. Importing this registers `low_rank`,
`losparse` and `correction`."""

from gossamer.compress.decompose.correction import Correction
from gossamer.compress.decompose.losparse import LoSparse
from gossamer.compress.decompose.truncated_svd import TruncatedSvd

__all__ = ["Correction", "LoSparse", "TruncatedSvd"]
