"""What the steps of one `optimize` job share."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import gossamer
from gossamer.compress.presets import steps_of, uniform_schemes
from gossamer.compress.swap import Swap
from gossamer.core.budget import Budget
from gossamer.core.plan import Calibration, ModelBinding, Operation, Plan, Step
from gossamer.core.progress import Progress
from gossamer.core.runfolder import RunFolder
from gossamer.data.batch import Batch
from gossamer.engine.walk import Walk
from gossamer.evaluate.task import Task
from gossamer.evaluate.vqa import VqaTask
from gossamer.models.accounting import account
from gossamer.models.containers import Containers
from gossamer.models.hierarchy import Layer
from gossamer.models.open import Opened
from gossamer.models.packed import QuantizedTensor, Scheme
from gossamer.search.applied import Applier
from gossamer.search.finish import batch_size
from gossamer.search.limits import Limits
from gossamer.search.parts import Parts, key_of
from gossamer.search.request import OptimizeRequest, Sizes
from gossamer.search.runtimes import Runtime
from gossamer.search.scorer import Score, Scorer
from gossamer.search.units import Assignment, Costs, Unit, choice_in, served

BANK_TECHNIQUE = "gptq"
"""What candidates are made with; the chosen plan is carried out by the technique that the request names."""

PACKED = 4
"""Questions about shared pictures that cost about as much as one about a picture of its own."""


@dataclass(frozen=True)
class Job:
    """One job. The model is unchanged between the steps.

    `fixed` are the bytes that no unit holds, `dense_bytes` the 16-bit size of the model as it came: the denominator of
    every ratio. `transform` is what was done to the model before, `transform_notes` what there is to say of it.
    """

    request: OptimizeRequest
    opened: Opened
    parts: Parts
    sizes: Sizes
    budget: Budget
    units: tuple[Unit, ...]
    fixed: int
    dense_bytes: int
    limits: Limits
    runtime: Runtime
    progress: Progress
    transform: tuple[Step, ...] = ()
    transform_notes: tuple[str, ...] = ()

    @cached_property
    def folder(self) -> RunFolder:
        """The run folder, made when it is first needed."""
        return RunFolder(self.request.out, self.opened.fingerprint)

    @cached_property
    def key(self) -> Any:
        """What every result of this job depends on, besides its own inputs."""
        parts = key_of(self.parts, self.sizes, self.request.seed)
        place = [] if self.request.on == "cpu" else [self.request.on]  # elsewhere sums are rounded differently
        model = [self.opened.fingerprint, self.request.transform]
        return [gossamer.__version__, *model, parts, BANK_TECHNIQUE, *place]

    @cached_property
    def room(self) -> Costs:
        """What the choices of all units may take under the limits."""
        return self.limits.room(self.units)

    def room_within(self, weight_bytes: int) -> Costs:
        """The same for a checkpoint of at most so many bytes."""
        return (min(self.room[0], weight_bytes - self.fixed), *self.room[1:])

    @cached_property
    def containers(self) -> Containers:
        """The forms that the model's layers load in."""
        return Containers.of(self.opened.model)

    def uniform(self, scheme: Scheme) -> Assignment:
        """The uniform setting: every linear layer that the runtime serves on it."""
        paths = uniform_schemes(self.opened.hierarchy, scheme)
        layers = [self.layers[path] for path in paths]
        return served(self.opened.hierarchy, layers, scheme, self.containers, self.runtime.serves)

    def choices(self, assignment: Assignment) -> list[int]:
        """The choice of every unit that makes an assignment."""
        return [choice_in(unit, assignment) for unit in self.units]

    def bytes_of(self, assignment: Assignment) -> int:
        """Bytes of the checkpoint under an assignment."""
        return account(self.opened, assignment).weight_bytes

    @cached_property
    def batch(self) -> int:
        """Examples in a forward pass."""
        return batch_size(self.parts.calibrate, self.opened)

    @cached_property
    def calibration(self) -> list[Batch]:
        """The calibration batches."""
        return list(self.parts.calibrate.batches(self.batch))

    @cached_property
    def walk(self) -> Walk:
        """The walk through the model."""
        return Walk(self.opened.model, self.opened.hierarchy, self.calibration[0].inputs)

    @cached_property
    def layers(self) -> dict[str, Layer]:
        """Layers by path."""
        return {layer.path: layer for layer in self.opened.hierarchy.layers()}

    @cached_property
    def _scorers(self) -> dict[str, Scorer]:
        return {}

    def scorer(self, part: str) -> Scorer:
        """The scorer of a part of the data, against the unchanged model."""
        if part not in self._scorers:
            task, size = getattr(self.parts, part), self.batch
            if isinstance(task, VqaTask):
                task = task.packed_for(self.opened.model)
                size *= PACKED if task.packed else 1
            self._scorers[part] = Scorer(self.opened.model, task, size, lambda inputs: self.walk.finish(None, inputs))
        return self._scorers[part]

    def score(self, tensors: Mapping[str, QuantizedTensor], part: str, share: float = 1.0) -> Score:
        """How the model does on a part, or on its first `share`, with these weights in it."""
        scorer = self.scorer(part)
        with self.holding(tensors):
            return scorer.score(lambda _, batch: self.walk.finish(None, batch.inputs), share)

    def results(self, tensors: Mapping[str, QuantizedTensor], task: Task) -> Any:
        """What the model does on a task with these weights in it."""
        with self.holding(tensors):
            return task.results(self.opened.model, self.progress)

    @contextmanager
    def holding(self, tensors: Mapping[str, QuantizedTensor]) -> Iterator[Swap]:
        """The model computes with these weights inside, through the swap that is handed out."""
        swap = Swap(self.opened.model)
        swap.put_all(self.layers, tensors)
        try:
            yield swap
        finally:
            swap.restore()

    @cached_property
    def applier(self) -> Applier:
        """Carries out plans."""
        return Applier(self.folder, self.opened.model, self.opened.hierarchy, self.calibration, self.key)

    def steps(self, assignment: Assignment) -> tuple[Step, ...]:
        """The plan steps of an assignment."""
        return steps_of(self.opened.hierarchy, assignment, self.request.technique)

    def plan(self, steps: Sequence[Step], budget: Budget) -> Plan:
        """The plan of these steps, bound to the model and the calibration data."""
        parts = self.parts
        return Plan(
            model=ModelBinding(family=self.opened.hierarchy.family, fingerprint=self.opened.fingerprint),
            budget=budget,
            calibration=Calibration(
                task=parts.name,
                data=parts.data,
                sha256=parts.sha256,
                pool=parts.pool,
                samples=len(parts.calibrate),
                seed=self.request.seed,
                settings=parts.settings,
            ),
            compression=(*self.transform, *steps),
            operation=Operation(runtime=self.runtime.name),
            hardware=self.limits.hardware,
        )
