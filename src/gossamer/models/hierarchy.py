"""The hierarchy of a model: modality → block → layer, each with a path that plans can address.

Paths: `MODALITY.blocks.N.REST` for a layer inside transformer block N, `MODALITY.REST` for one outside, where REST is
the module's own name inside its block or part: `language.blocks.3.mlp.up_proj`, `vision.blocks.0.self_attn.q_proj`,
`projector.linear_1`, `embeddings.embed_tokens`, `head.lm_head`. The matrices of a stacked parameter have their number
before the parameter's name: `language.blocks.3.mlp.experts.7.down_proj`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import gcd, prod
from typing import TYPE_CHECKING, Literal

from gossamer.core.paths import matches

if TYPE_CHECKING:
    from torch import Tensor

LayerKind = Literal["linear", "embedding", "conv", "expert"]


@dataclass(frozen=True)
class Layer:
    """One weight that acts as a matrix of `rows` outputs × `columns` inputs.

    `shape` is the stored weight's. A conv is seen as (shape[0], product of the rest); `transposed` tells that it is
    stored as inputs × outputs, as in GPT-2. An `expert` is one of the matrices that a parameter stacks: the one at
    `index`, of that `shape`.
    `unit` names the fused set that must share a setting (q/k/v, gate/up, all of one expert); layers with equal `unit`
    belong together, and the name is a path glob that selects them.
    `tied_to` is the path of the layer whose tensor this one shares (its parameters are counted there).
    `module` is the dotted path of the owner in the model and `parameter` the tensor's name in it.
    """

    path: str
    module: str
    kind: LayerKind
    shape: tuple[int, ...]
    unit: str
    tied_to: str | None = None
    parameter: str = "weight"
    transposed: bool = False
    index: int | None = None

    @property
    def tensor(self) -> str:
        """The name, in the model's state dict, of the parameter that is the weight or stacks it."""
        return f"{self.module}.{self.parameter}" if self.module else self.parameter

    @property
    def on_grid(self) -> bool:
        """Whether it can be stored with few bits: input-major linear layers have no such form yet."""
        return self.kind != "linear" or not self.transposed

    @property
    def parameters(self) -> int:
        """Weight elements, 0 where the tensor is another layer's."""
        return 0 if self.tied_to is not None else self.rows * self.columns

    @property
    def rows(self) -> int:
        """Output rows of the weight seen as a matrix."""
        return self.shape[1] if self.transposed else self.shape[0]

    @property
    def columns(self) -> int:
        """Input columns of the weight seen as a matrix."""
        return prod(self.shape) // self.rows if self.rows else 0

    def stored(self, matrix: "Tensor") -> "Tensor":
        """`matrix` (rows, columns) as the weight is stored, of `shape`; a view where the storage allows."""
        return (matrix.T if self.transposed else matrix).reshape(self.shape)

    def place(self, parameter: "Tensor") -> "Tensor":
        """The part of the owner's `parameter` that is this weight, of `shape`: a view."""
        return parameter if self.index is None else parameter[self.index]


@dataclass(frozen=True)
class Block:
    """One transformer (or recurrent, or expert) block. `other_parameters` counts norms, biases and vectors."""

    path: str
    module: str
    layers: tuple[Layer, ...]
    other_parameters: int

    @property
    def parameters(self) -> int:
        """All parameters of the block."""
        return sum(layer.parameters for layer in self.layers) + self.other_parameters


@dataclass(frozen=True)
class Modality:
    """A part of the model: vision, text, audio, projector, language, embeddings, head.

    `root` is the module that computes it (empty where it has none of its own); `layers` are those outside blocks.
    `other_parameters` counts norms, biases and vectors outside blocks.
    """

    name: str
    root: str
    blocks: tuple[Block, ...]
    layers: tuple[Layer, ...]
    other_parameters: int

    @property
    def parameters(self) -> int:
        """All parameters of the modality."""
        inner = sum(block.parameters for block in self.blocks) + sum(layer.parameters for layer in self.layers)
        return inner + self.other_parameters


@dataclass(frozen=True)
class Hierarchy:
    """The whole model. `guessed` tells that no family row matched and the structure was found by inspection."""

    family: str
    guessed: bool
    modalities: tuple[Modality, ...]

    @property
    def parameters(self) -> int:
        """All parameters, tied tensors once."""
        return sum(modality.parameters for modality in self.modalities)

    def layers(self) -> Iterator[Layer]:
        """Every layer, modality by modality, block by block."""
        for modality in self.modalities:
            for block in modality.blocks:
                yield from block.layers
            yield from modality.layers

    def blocks(self) -> Iterator[Block]:
        """Every block in order of the modalities."""
        for modality in self.modalities:
            yield from modality.blocks

    @cached_property
    def _expert_columns(self) -> int:
        return gcd(*(layer.columns for layer in self.layers() if layer.index is not None))

    def grid_columns(self, layer: Layer) -> int:
        """The columns that a group must divide: the layer's, or for an expert those common to all experts of the model,
        which checkpoints hold on one grid."""
        return layer.columns if layer.index is None else self._expert_columns

    def mapped(self, change: Callable[[Layer], Layer], block: Callable[[str], str] = str) -> "Hierarchy":
        """The same with every layer as `change` gives it, and block paths as `block` does."""
        modalities = (
            replace(
                part,
                blocks=tuple(
                    replace(one, path=block(one.path), layers=tuple(map(change, one.layers))) for one in part.blocks
                ),
                layers=tuple(map(change, part.layers)),
            )
            for part in self.modalities
        )
        return replace(self, modalities=tuple(modalities))

    def select(self, pattern: str) -> tuple[Layer, ...]:
        """The layers that a path glob selects (see `gossamer.core.paths`)."""
        return tuple(layer for layer in self.layers() if matches(pattern, layer.path))

    def units(self) -> dict[str, tuple[Layer, ...]]:
        """The fused sets: unit name → the layers that must share a setting."""
        sets: dict[str, list[Layer]] = {}
        for layer in self.layers():
            sets.setdefault(layer.unit, []).append(layer)
        return {name: tuple(members) for name, members in sets.items()}
