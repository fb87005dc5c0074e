"""The blocks of a stack, with norms before their parts or after them."""

from collections.abc import Callable
from dataclasses import dataclass

from gossamer.accelerator.program.attention import cross_attention
from gossamer.accelerator.program.draft import View
from gossamer.accelerator.program.images import AttentionImages, NormEntries, StackImages
from gossamer.accelerator.program.mlp import mlp
from gossamer.accelerator.program.products import Work, narrow, norm
from gossamer.core.errors import SettingError

Attend = Callable[[str, View, View, AttentionImages], View]
"""Self-attention of a block: (name, 8-bit rows, residual stream, images) → residual stream."""


@dataclass(frozen=True)
class _Between:
    """What stands between two parts: the residual stream `x`, and its 8 bits `h` where a norm came last."""

    x: View
    h: View | None = None


def blocks(work: Work, held: StackImages, x: View, m: int, attend: Attend, memory: View | None) -> View:
    """All blocks of a stack on `m` rows of the residual stream; `memory`: rows of cross attention, none: those kept."""
    stack, at = held.stack, _Between(x)
    for i, block in enumerate(held.blocks):
        name = f"{stack.name}.{i}"
        sides = _PostNorms(work, m, stack.convert) if block.post else _PreNorms(work, m)

        label = f"{name}.attention_norm"
        h = sides.before(label, at, block.attention_norm)
        x = attend(f"{name}.attention", h, at.x, block.attention)
        at = sides.after(label, x, block.attention_norm, block.attention_norm_wide)

        if block.cross is not None:
            label = f"{name}.cross_norm"
            if block.cross_norm is None:
                raise SettingError(f"{label}: cross attention needs its norm")
            h = sides.before(label, at, block.cross_norm)
            x = cross_attention(work, f"{name}.cross", h, at.x, m, block.cross, memory)
            at = sides.after(label, x, block.cross_norm, block.cross_norm_wide)

        label = f"{name}.mlp_norm"
        x = mlp(work, f"{name}.mlp", sides.before(label, at, block.mlp_norm), at.x, m, block.mlp)
        at = sides.after(label, x, block.mlp_norm, block.mlp_norm_wide)
    return at.x


@dataclass(frozen=True)
class _PreNorms:
    work: Work
    m: int

    def before(self, name: str, at: _Between, entries: NormEntries) -> View:
        return norm(self.work, name, at.x, self.m, entries)

    def after(self, name: str, x: View, entries: NormEntries, wide: NormEntries | None) -> _Between:
        return _Between(x)


@dataclass(frozen=True)
class _PostNorms:
    work: Work
    m: int
    convert: tuple[int, int] | None

    def before(self, name: str, at: _Between, entries: NormEntries) -> View:
        if at.h is not None:
            return at.h
        if self.convert is None:
            raise SettingError(f"{name}: norms come after their parts; the stack needs `convert` before the first")
        return narrow(self.work, f"{name} in", at.x, self.m, len(entries.norm.gain), self.convert)

    def after(self, name: str, x: View, entries: NormEntries, wide: NormEntries | None) -> _Between:
        if wide is None:
            raise SettingError(f"{name}: a norm after its part needs its `wide` twin")
        return _Between(
            norm(self.work, f"{name} wide", x, self.m, wide, wide=True), norm(self.work, name, x, self.m, entries)
        )
