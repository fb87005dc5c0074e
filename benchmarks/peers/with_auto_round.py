"""AutoRound's sides: one width for all layers, and AutoScheme's mixed widths at a given average."""

import os

os.environ["AR_DISABLE_DATASET_SUBPROCESS"] = "1"  # the samples are registered in this process

from typing import Any

import torch
from common import Task, finish, measured, model_and_tokenizer

WIDTHS = (2, 3, 4, 8)
"""What AutoScheme may choose from for each layer."""

SAMPLES = "contest"
"""The name that AutoScheme, which takes no tensors, knows the calibration samples by."""


def register(task: Task) -> None:
    """Makes the contest's samples one of AutoRound's named data sets."""
    from auto_round.calib_dataset import register_dataset
    from datasets import Dataset

    rows = {"input_ids": task.samples, "attention_mask": [[1] * len(row) for row in task.samples]}

    @register_dataset(SAMPLES)
    def samples(*_: Any, **__: Any) -> Any:
        return Dataset.from_dict(rows).with_format("torch")


def scheme_of(task: Task, bits: int) -> Any:
    """Symmetric grids in groups."""
    from auto_round.schemes import QuantizationScheme

    return QuantizationScheme(bits=bits, group_size=task.group, sym=True, data_type="int", act_bits=16)


def main() -> None:
    """Runs one side."""
    from auto_round import AutoRound, AutoScheme

    task = Task.read()
    register(task)
    model, tokenizer = model_and_tokenizer(task)
    size = {"nsamples": len(task.samples), "seqlen": len(task.samples[0]), "batch_size": task.batch}
    note = f"{task.iterations} iterations of {task.batch} samples, other settings its defaults"
    if task.side == "auto-round autoscheme":
        options = [scheme_of(task, bits) for bits in WIDTHS]
        scheme = AutoScheme(avg_bits=task.bits, options=options, dataset=SAMPLES, **size)
        note += f", widths {', '.join(map(str, WIDTHS))}, average with scales"
    else:
        scheme = scheme_of(task, int(task.bits))

    def quantise() -> Any:
        rounding = AutoRound(
            model, tokenizer=tokenizer, scheme=scheme, dataset=SAMPLES, iters=task.iterations, device_map="cpu", **size
        )
        rounding.quantize()
        return rounding

    rounding, figures = measured(quantise)
    dense = {name: value.clone() for name, value in rounding.model.state_dict().items() if name.endswith("weight")}
    rounding.save_quantized(str(task.stored), format="auto_round", inplace=True)
    finish(task, dense, figures, note, "auto-round", "transformers")


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
