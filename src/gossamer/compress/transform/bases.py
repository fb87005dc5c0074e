"""Bases: which axes of which weights carry the channels of one and the same space.

A residual stream, or the values of one attention head, is a space of vectors that some weights write into and others
read, and nothing between looks at its channels one by one. Then its basis is free to choose. A `Basis` names such a
space; two that turn out to be one are joined, and one whose vectors are pieces of another's divides it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gossamer.compress.transform.norms import Norm


@dataclass(eq=False)
class Basis:
    """The channels of a space: `size` of them, or `size // root.size` pieces of the space `root`.

    `pinned` tells what looks at the channels one by one, so that the basis cannot change; empty where nothing does.
    """

    size: int
    pinned: str = ""
    _parent: Basis | None = None

    @property
    def root(self) -> Basis:
        """The space that this one is, or is made of pieces of."""
        found = self
        while found._parent is not None:
            found = found._parent
        return found

    def pin(self, reason: str) -> None:
        """The basis cannot change. The first reason is kept."""
        self.root.pinned = self.root.pinned or reason

    def resized(self, size: int, reason: str) -> Basis:
        """The same space as `size` channels: several pieces of it side by side, or an equal part of it.

        Where the sizes do not fit each other the result is a space of its own, and both are pinned for `reason`.
        """
        root, other = self.root, Basis(size)
        if size % root.size == 0:
            other._parent = root
        elif root.size % size == 0:
            root._parent = other
            other.pinned = root.pinned
        else:
            self.pin(reason)
            other.pin(reason)
        return other

    def join(self, other: Basis, reason: str) -> None:
        """Both are one space. Where their sizes do not fit each other both are pinned for `reason`."""
        small, large = sorted((self.root, other.root), key=lambda basis: basis.size)
        if small is large:
            return
        if large.size % small.size:
            small.pin(reason)
            large.pin(reason)
            return
        large._parent = small
        small.pinned = small.pinned or large.pinned


@dataclass(frozen=True)
class Axis:
    """The dimension of a tensor, counted from its end (-1 is the last), that `basis` lies on."""

    dim: int
    basis: Basis


@dataclass(frozen=True)
class Use:
    """An axis of a parameter (its name in the model). `reads`: the weight reads the basis there, or else writes it."""

    parameter: str
    axis: Axis
    reads: bool


@dataclass(frozen=True)
class NormUse:
    """A norm, its module path and the bases before and after it."""

    path: str
    norm: Norm
    before: Basis
    after: Basis


@dataclass(frozen=True)
class Bases:
    """What one forward pass shows. `doors` are the bases of the hidden states at the modules that were asked for."""

    uses: tuple[Use, ...]
    norms: tuple[NormUse, ...]
    doors: Mapping[str, Basis | None]
