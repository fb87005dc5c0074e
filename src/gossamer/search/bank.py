"""The bank: every layer at every scheme that the search may choose, really quantised, packed on disk."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from gossamer.compress.apply import reshaped
from gossamer.compress.calibrate import Stream, layers_by_step, pass_through
from gossamer.compress.statistics import Statistics
from gossamer.compress.swap import finite_weight
from gossamer.core.files import writing
from gossamer.core.progress import Progress
from gossamer.core.runfolder import RunFolder
from gossamer.core.technique import build
from gossamer.data.batch import Batch
from gossamer.engine.walk import Walk
from gossamer.models.hierarchy import Hierarchy, Layer
from gossamer.models.packed import STATE_PARTS, QuantizedTensor, Scheme
from gossamer.search.units import Assignment, Unit


def tag(path: str, scheme: Scheme) -> str:
    """The name of a candidate inside its file."""
    return f"{path}|{scheme.bits}-{scheme.group or 'row'}-{'s' if scheme.symmetric else 'a'}|"


class Bank:
    """Candidates by (layer path, scheme), in one safetensors file for each step of the walk."""

    def __init__(self) -> None:
        self._files: dict[str, Path] = {}

    def write(self, file: Path, candidates: Mapping[tuple[str, Scheme], tuple[QuantizedTensor, float]]) -> None:
        """Stores candidates and their output errors in `file` (atomically) and adds them."""
        state = {}
        for (path, scheme), (tensor, error) in candidates.items():
            state.update(tensor.to_state(tag(path, scheme)))
            state[tag(path, scheme) + "error"] = torch.tensor([error], dtype=torch.float64)
        with writing(file) as temporary:
            save_file(state, temporary)
        self.open(file)

    def open(self, file: Path) -> None:
        """Adds the candidates that `file` holds."""
        file = file.resolve()
        with safe_open(file, "pt") as stored:
            self._files.update({key.removesuffix("scheme"): file for key in stored.keys() if key.endswith("|scheme")})  # noqa: SIM118

    @property
    def files(self) -> list[Path]:
        """The files that it reads."""
        return list(dict.fromkeys(self._files.values()))

    def load(self, wanted: Iterable[tuple[str, Scheme]]) -> dict[str, QuantizedTensor]:
        """Layer path → its candidate."""
        found: dict[str, QuantizedTensor] = {}
        by_file: dict[Path, list[tuple[str, Scheme]]] = {}
        for path, scheme in wanted:
            by_file.setdefault(self._files[tag(path, scheme)], []).append((path, scheme))
        for file, members in by_file.items():
            with safe_open(file, "pt") as stored:
                names = set(stored.keys())
                for path, scheme in members:
                    prefix = tag(path, scheme)
                    parts = [prefix + part for part in STATE_PARTS if prefix + part in names]
                    state = {name: stored.get_tensor(name) for name in parts}
                    found[path] = QuantizedTensor.from_state(state, prefix)
        return found

    def error(self, path: str, scheme: Scheme) -> float:
        """The candidate's mean squared output error on the calibration data (NaN where it was not calibrated)."""
        prefix = tag(path, scheme)
        with safe_open(self._files[prefix], "pt") as stored:
            return float(stored.get_tensor(prefix + "error"))

    def assignment(self, assignment: Assignment) -> dict[str, QuantizedTensor]:
        """The candidates that an assignment names."""
        return self.load(assignment.items())


def fill_bank(
    folder: RunFolder,
    key: Any,
    model: nn.Module,
    hierarchy: Hierarchy,
    units: Sequence[Unit],
    technique: str,
    calibration: Sequence[Batch],
    walk: Walk,
    progress: Progress,
) -> Bank:
    """Quantises every layer of the units at every scheme of their choices, calibrated on the unchanged model's inputs.

    One file for each step of the walk; steps that are on disk are not run again. Layers that the calibration data
    never reaches are rounded without statistics.
    """
    wanted: dict[str, dict[Scheme, None]] = {}
    for unit in units:
        for choice in unit.choices:
            for path, scheme in choice.schemes:
                wanted.setdefault(path, {})[scheme] = None
    steps = {
        number: [layer for layer in layers if layer.path in wanted]
        for number, layers in layers_by_step(walk, hierarchy).items()
    }
    reached = {layer.path for layers in steps.values() for layer in layers}
    steps[-1] = [
        *steps[-1],
        *(layer for layer in hierarchy.layers() if layer.path in wanted and layer.path not in reached),
    ]
    files = {
        number: folder.file("bank", [key, technique, _listing(layers, wanted)], ".safetensors")
        for number, layers in steps.items()
        if layers
    }
    bank = Bank()
    stream = Stream(walk, calibration)
    missing = [number for number, file in files.items() if not file.exists()]
    for number in progress.track(sorted(steps), "quantise every candidate, block by block"):
        if number in missing:
            found: dict[tuple[str, Scheme], tuple[QuantizedTensor, float]] = {}

            def meet(layer: Layer, statistics: Statistics | None, found: Any = found) -> None:
                found.update(_candidates(model, layer, wanted[layer.path], technique, statistics))

            pass_through(model, stream, [layer for layer in steps[number] if layer.path in reached], meet)
            for layer in steps[number]:
                if layer.path not in reached:
                    meet(layer, None)
            bank.write(files[number], found)
            continue
        if number in files:
            bank.open(files[number])
        if missing and number < max(missing):
            stream.advance()
    return bank


def _listing(layers: Sequence[Layer], wanted: Mapping[str, Mapping[Scheme, None]]) -> list[str]:
    return [tag(layer.path, scheme) for layer in layers for scheme in wanted[layer.path]]


def _candidates(
    model: nn.Module, layer: Layer, schemes: Iterable[Scheme], technique: str, statistics: Statistics | None
) -> dict[tuple[str, Scheme], tuple[QuantizedTensor, float]]:
    weight = finite_weight(model, layer)
    candidates: dict[tuple[str, Scheme], tuple[QuantizedTensor, float]] = {}
    for scheme in schemes:
        settings = {"bits": scheme.bits, "group": scheme.group, "symmetric": scheme.symmetric}
        done = build(technique, settings).quantize(weight, statistics)
        error = done.loss if statistics is not None else math.nan
        candidates[layer.path, scheme] = (reshaped(done.tensor, layer).to("cpu"), error)
    return candidates
