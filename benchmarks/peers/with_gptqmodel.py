"""GPTQModel's side: its GPTQ."""

import os

os.environ["GPTQMODEL_CPU_WORKERS"] = "2"  # its default for two cores is 1, which its own thread pool refuses

from typing import Any

import torch
from common import Task, finish, measured


def main() -> None:
    """Runs the side."""
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    task = Task.read()
    config = QuantizeConfig(bits=int(task.bits), group_size=task.group, sym=True, offload_to_disk=False)
    model = GPTQModel.load(task.model, config, device="cpu", dtype=torch.float32)
    rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in task.samples]
    _, figures = measured(lambda: model.quantize(rows, calibration_sort=None, batch_size=task.batch))
    model.save(str(task.stored))
    # Read back, since before saving its zero points are off by the one that its format subtracts.
    loaded = GPTQModel.load(str(task.stored), device="cpu", backend=BACKEND.GPTQ_TORCH)
    state: dict[str, Any] = dict(loaded.model.state_dict())
    dense = {name: value for name, value in state.items() if name.endswith("norm.weight")}
    for name, module in loaded.model.named_modules():
        if name.endswith("_proj"):
            dense[f"{name}.weight"] = module.dequantize_weight().T
    finish(task, dense, figures, "its defaults (activation order by groups)", "gptqmodel", "transformers")


if __name__ == "__main__":
    main()
