"""Our sides: uniform presets, and searched widths within the bytes of AutoScheme's result."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from common import Task, finish, measured

from gossamer.compress.apply import Applied, apply_steps
from gossamer.compress.presets import preset_steps
from gossamer.core.plan import Step
from gossamer.data.batch import Batch
from gossamer.evaluate.text import TextTask, Window
from gossamer.models.checkpoint import save_compressed
from gossamer.models.memory import Scratch
from gossamer.models.open import Opened, open_model
from gossamer.search.job import Job
from gossamer.search.opening import open_job
from gossamer.search.optimize import profile
from gossamer.search.request import OptimizeRequest
from gossamer.search.steps import allocated
from gossamer.search.units import assignment_of, fixed_bytes

Prepared = tuple[Opened, Callable[[], Applied], str]
"""The model, the call that compresses it and is measured, and a sentence on the settings."""


def uniform(task: Task) -> Prepared:
    """A preset's steps, on the same samples and as many at a time as the peers get."""
    opened = open_model(task.model, memory=Scratch(task.stored))  # as `gossamer apply` opens it
    technique = task.side.removeprefix("gossamer ")
    whole_rows = f"smoothquant+gptq-w{int(task.bits)}"  # as the peer, whose activations the judge rounds too
    name = whole_rows if technique == "smoothquant" else f"{technique}-w{int(task.bits)}g{task.group}"
    steps = learning(preset_steps(name, opened.hierarchy), task)

    def call() -> Applied:
        return apply_steps(opened.model, opened.hierarchy, steps, batches(task), memory=opened.memory)

    return opened, call, f"preset {name}{learnt(technique, task)}"


def searched(task: Task) -> Prepared:
    """The plan that `gossamer optimize` finds with quick effort, carried out.

    Its report and its proofs are left out, as the peer makes none.
    """
    technique = task.side.removeprefix("gossamer optimize ")
    job = job_of(task, technique)
    dense = sum(2 * layer.rows * layer.columns for unit in job.units for layer in unit.layers)
    assert task.stored_bytes is not None
    limit = job.dense_bytes - dense + task.stored_bytes

    def call() -> Applied:
        trials, sensitivity = profile(job)
        chosen = assignment_of(job.units, allocated(job, trials, sensitivity, job.room_within(limit)).chosen)
        return apply_steps(job.opened.model, job.opened.hierarchy, learning(job.steps(chosen), task), batches(task))

    note = f"widths searched with quick effort within AutoScheme's bytes, carried out by {technique}"
    return job.opened, call, note + learnt(technique, task)


def job_of(task: Task, technique: str) -> Job:
    """The job on the blocks' layers and the contest's samples.

    Sensitivity and choice see one half of the samples, confirmation the other.
    """
    source: Any = {"model": task.model, "task": "text", "data": "heldout"}  # its parts are replaced below
    request = OptimizeRequest(out=task.folder / "run", ratio=1.0, effort="quick", technique=technique, **source)
    job = open_job(request)
    windows = tuple(Window(tuple(row), len(row) - 1) for row in task.samples)
    samples = TextTask(windows, {"context_tokens": len(task.samples[0])})
    half = max(1, len(windows) // 2)
    one, other = samples.subset(range(half)), samples.subset(range(len(windows) - half, len(windows)))
    parts = replace(job.parts, calibrate=samples, measure=one, select=one, confirm=other, guard=other)
    units = tuple(unit for unit in job.units if unit.block is not None)
    return replace(job, parts=parts, units=units, fixed=fixed_bytes(job.dense_bytes, units))


def learning(steps: tuple[Step, ...], task: Task) -> tuple[Step, ...]:
    """The steps with the task's iterations where their technique learns."""
    return tuple(
        Step.model_validate({**dict(step), "iterations": task.iterations}) if step.do == "signround" else step
        for step in steps
    )


def learnt(technique: str, task: Task) -> str:
    """How much was learnt, in words."""
    return f", {task.iterations} iterations of {task.batch} samples" if technique == "signround" else ""


def batches(task: Task) -> list[Batch]:
    """The calibration samples."""
    found = []
    for start in range(0, len(task.samples), task.batch):
        rows = torch.tensor(task.samples[start : start + task.batch])
        inputs = {"input_ids": rows, "attention_mask": torch.ones_like(rows)}
        found.append(Batch(inputs, rows, tuple(range(start, start + len(rows)))))
    return found


def main() -> None:
    """Runs one side."""
    task = Task.read()
    prepare = searched if task.side.startswith("gossamer optimize") else uniform
    opened, call, note = prepare(task)
    done, figures = measured(call)
    dense = {name: value.clone() for name, value in opened.model.state_dict().items() if name.endswith("weight")}
    save_compressed(opened, done.tensors, task.stored)
    finish(task, dense, figures, note, "gossamer", "transformers")


if __name__ == "__main__":
    main()
