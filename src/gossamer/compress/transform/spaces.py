"""A space whose basis can be chosen: what has to turn with it, and what stands in the way."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gossamer.compress.transform.bases import Bases, Basis, NormUse, Use


@dataclass(frozen=True, eq=False)
class Space:
    """The bases that turn together, `roots`: they are tied by norms, which commute with rotations once their gains
    are in what reads them (and, where they take off the mean, only with rotations that keep it)."""

    roots: tuple[Basis, ...]
    uses: tuple[Use, ...]
    norms: tuple[NormUse, ...]

    @classmethod
    def of(cls, bases: Bases, starts: Iterable[Basis]) -> Space:
        """The space that holds `starts`."""
        roots = {basis.root: None for basis in starts}  # in this order, so that equal models give equal messages
        norms: list[NormUse] = []
        for _ in bases.norms:  # a norm may be reached through any other
            norms = [norm for norm in bases.norms if norm.before.root in roots or norm.after.root in roots]
            roots |= {basis.root: None for norm in norms for basis in (norm.before, norm.after)}
        uses = tuple(use for use in bases.uses if use.axis.basis.root in roots)
        return cls(tuple(roots), uses, tuple(norms))

    @property
    def size(self) -> int:
        """Channels of the rotation."""
        return min((root.size for root in self.roots), default=0)

    @property
    def keeps_mean(self) -> bool:
        """Whether the rotation has to keep every vector's mean."""
        return any(norm.norm.centres for norm in self.norms)

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of all parameters that change."""
        own = {f"{norm.path}.{name}" for norm in self.norms for name, _ in norm.norm.module.named_parameters()}
        return tuple(sorted({use.parameter for use in self.uses} | own))

    @property
    def obstacle(self) -> str | None:
        """Why the basis cannot change, None if it can."""
        pinned = next((root.pinned for root in self.roots if root.pinned), None)
        if pinned:
            return f"its channels are bound by {pinned}"
        if any(root.size % self.size for root in self.roots):
            return f"its parts of {', '.join(str(root.size) for root in self.roots)} channels do not fit each other"
        for norm in self.norms:
            if not _even(norm.norm.gain) and not self._foldable(norm):
                return f"{norm.path} scales its channels one by one and no layer that reads it can take over the gains"
        return None

    def fold(self, model: nn.Module) -> None:
        """Moves the gains of all norms into what reads them, in place."""
        for norm in self.norms:
            gain = norm.norm.gain
            if _even(gain):
                continue
            for use in self._readers(norm):
                _along(model, use, gain.diag())
            norm.norm.clear()

    def rotate(self, model: nn.Module, rotation: Tensor) -> None:
        """Every axis times `rotation` float64 (size, size), in place. The gains are folded before."""
        for use in self.uses:
            _along(model, use, rotation)

    def _readers(self, norm: NormUse) -> Iterator[Use]:
        return (use for use in self.uses if use.reads and use.axis.basis.root is norm.after.root)

    def _foldable(self, norm: NormUse) -> bool:
        """Whether what the norm writes goes only to weights, all of it from this norm."""
        writers = [use for use in self.uses if not use.reads and use.axis.basis.root is norm.after.root]
        others = [other for other in self.norms if other is not norm and other.after.root is norm.after.root]
        alone = all(use.parameter == f"{norm.path}.bias" for use in writers) and not others
        gain = norm.norm.gain
        fits = all(use.axis.basis.size % len(gain) == 0 for use in self._readers(norm))
        divides = norm.norm.module._parameters.get("bias") is None or bool((gain != 0).all())
        return alone and fits and divides and norm.before.root is not norm.after.root


def _even(gain: Tensor) -> bool:
    return bool(torch.allclose(gain, gain[0].expand_as(gain), rtol=1e-6, atol=0))


def turned(values: Tensor, dim: int, matrix: Tensor) -> Tensor:
    """Pieces of dimension `dim` of `values`, each as long as `matrix` is wide, times `matrix`; both of one type."""
    moved = values.movedim(dim, -1)
    product = moved.reshape(*moved.shape[:-1], -1, len(matrix)) @ matrix
    return product.reshape(moved.shape).movedim(-1, dim)


def _along(model: nn.Module, use: Use, matrix: Tensor) -> None:
    parameter = model.get_parameter(use.parameter)
    with torch.no_grad():
        parameter.copy_(turned(parameter.double(), use.axis.dim, matrix.to(parameter.device)))


def free_spaces(bases: Bases, modules: Collection[str], taken: Collection[Basis]) -> list[Space]:
    """The spaces without norms that only parameters of these modules write and read, such as values of attention heads.

    Those with a basis in `taken` are left out.
    """
    found: dict[Basis, list[Use]] = {}
    for use in bases.uses:
        found.setdefault(use.axis.basis.root, []).append(use)
    tied = {basis.root for norm in bases.norms for basis in (norm.before, norm.after)}
    return [
        Space((root,), tuple(uses), ())
        for root, uses in found.items()
        if not root.pinned
        and root.size > 1
        and root not in tied
        and root not in taken
        and {use.reads for use in uses} == {True, False}
        and all(use.parameter.rpartition(".")[0] in modules for use in uses)
    ]
