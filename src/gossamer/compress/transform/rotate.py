"""Rotations: outlier channels are spread over all channels, so that grids lose less (arXiv 2404.00456, 2405.16406).

R1 turns the residual stream of a tower: all that is written into it and all that reads it turn by one orthogonal
matrix, which norms let pass once their gains are in the layers that read them. R2 turns the values of attention heads.
Both are folded into weights: nothing is added to the model. What writes and what reads is found out (see `trace`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from gossamer.compress.passes import Aim, Phase
from gossamer.compress.transform.bases import Bases
from gossamer.compress.transform.orthogonal import Kind, hadamard, orthogonal
from gossamer.compress.transform.spaces import Space, free_spaces
from gossamer.compress.transform.trace import find_bases
from gossamer.compress.transform.trial import parted, preserving
from gossamer.core.errors import DataError, PlanError
from gossamer.core.technique import name_of, technique
from gossamer.data.batch import Batch
from gossamer.models.hierarchy import Hierarchy, Layer, Modality

TOLERANCE = 1e-4
"""Largest accepted change of the model's output, as a share of its largest value."""


@technique("rotate")
@dataclass(frozen=True)
class Rotate:
    """Turns the streams of the towers that the selected layers' blocks belong to.

    `kind`: `hadamard`, with random signs, or `random`, uniform over all rotations. `seed` fixes both. `heads` turns the
    values of the attention heads too, by one matrix per block, where all that writes and reads them is selected.
    """

    kind: Kind = "hadamard"
    seed: int = 0
    heads: bool = True
    phase: ClassVar[Phase] = "transform"

    def transform(
        self,
        model: nn.Module,
        hierarchy: Hierarchy,
        layers: Sequence[Layer],
        batches: Sequence[Batch],
        aims: Mapping[str, Aim],
    ) -> tuple[str, ...]:
        """See `compress.passes.Transform`. The first batch must run all that touches the towers.

        Raises `PlanError` for a selection without blocks, and for a tower whose stream cannot turn; nothing is changed
        then. Raises `DataError` without calibration data. Tied weights that turn differently part: a note says so.
        """
        if not batches:
            raise DataError(f"{name_of(self)} needs a calibration batch, to see what reads and writes a tower's stream")
        towers = {tower.name: tower for tower in hierarchy.modalities if tower.blocks}
        chosen = [name for name, tower in towers.items() if _blocks_of(tower) & set(layers)]
        if not chosen:
            raise PlanError(f"{name_of(self)} turns the stream of a whole tower: select blocks of {', '.join(towers)}")
        doors = [block.module for tower in towers.values() for block in tower.blocks]
        with parted(model) as ties:
            bases = find_bases(model, batches[0].inputs, doors)
            streams = {name: _stream(bases, tower) for name, tower in towers.items()}
            obstacles = {name: _obstacle(streams[name], bases, model) for name in towers}
            for name in chosen:
                if obstacles[name]:
                    free = ", ".join(other for other in towers if not obstacles[other]) or "none"
                    raise PlanError(
                        f"{name} cannot be rotated: {obstacles[name]} (towers of this model that can: {free})"
                    )
            spaces = [streams[name] for name in chosen]
            if self.heads:
                taken = {root for stream in streams.values() for root in stream.roots}
                spaces += free_spaces(bases, {layer.module for layer in layers}, taken)
            changing = sorted({name for space in spaces for name in space.parameters})
            with preserving(model, batches[0].inputs, changing, TOLERANCE, f"rotating {' and '.join(chosen)}"):
                for space in spaces:
                    space.fold(model)
                rotations, notes = self._rotations(model, hierarchy, spaces, batches, aims)
                for space, rotation in zip(spaces, rotations, strict=True):
                    space.rotate(model, rotation)
        return (*(f"{one} and {other} no longer share one tensor: both are stored" for one, other in ties), *notes)

    def _rotations(
        self,
        model: nn.Module,
        hierarchy: Hierarchy,
        spaces: Sequence[Space],
        batches: Sequence[Batch],
        aims: Mapping[str, Aim],
    ) -> tuple[list[Tensor], tuple[str, ...]]:
        """The rotation of each space, whose gains are folded already, and what did not go as asked."""
        generator = torch.Generator().manual_seed(self.seed)
        rotations = [orthogonal(space.size, self.kind, generator, space.keeps_mean) for space in spaces]
        sizes = sorted({space.size for space in spaces}) if self.kind == "hadamard" else []
        notes = (f"{n} channels turn in blocks of {n & -n}: no Hadamard matrix is known" for n in sizes)
        return rotations, tuple(note for note, n in zip(notes, sizes, strict=True) if hadamard(n) is None)


def _blocks_of(tower: Modality) -> set[Layer]:
    return {layer for block in tower.blocks for layer in block.layers}


def _stream(bases: Bases, tower: Modality) -> Space:
    """The space of the hidden states at the doors of the tower's blocks."""
    doors = [bases.doors.get(block.module) for block in tower.blocks]
    return Space.of(bases, [door for door in doors if door is not None])


def _obstacle(stream: Space, bases: Bases, model: nn.Module) -> str | None:
    """Why the stream cannot turn; None if it can."""
    if not stream.uses:
        return "the calibration batch does not reach it, or what is written into it could not be followed"
    if stream.obstacle:
        return stream.obstacle
    seen = {use.parameter for use in bases.uses} | {f"{norm.path}.weight" for norm in bases.norms}
    for name, parameter in model.named_parameters():
        if name not in seen and stream.size in parameter.shape:
            return f"the calibration batch does not run {name}, which may belong to its stream"
    return None
