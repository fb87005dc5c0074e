"""torchao's sides: weight-only rounding, plain and HQQ. They need no data."""

from typing import Any

import torch
from common import Task, finish, measured, model_and_tokenizer
from safetensors.torch import save_file


def config_of(task: Task) -> tuple[Any, str]:
    """The configuration of a side that runs on a CPU, and a sentence on it."""
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup
    from torchao.quantization.quantize_.workflows import Int4ChooseQParamsAlgorithm, IntxChooseQParamsAlgorithm

    bits, hqq = int(task.bits), task.side == "torchao hqq"
    if bits == 8:
        return Int8WeightOnlyConfig(granularity=PerGroup(task.group)), "Int8WeightOnlyConfig, symmetric"
    if bits == 4:
        way = Int4ChooseQParamsAlgorithm.HQQ if hqq else Int4ChooseQParamsAlgorithm.TINYGEMM
        config = PrototypeInt4WeightOnlyConfig(group_size=task.group, int4_choose_qparams_algorithm=way)
        return config, "PrototypeInt4WeightOnlyConfig (its packed form for CPUs), asymmetric: it has no other"
    way = IntxChooseQParamsAlgorithm.HQQ_SCALE_ONLY if hqq else IntxChooseQParamsAlgorithm.AFFINE
    config = IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{bits}"), granularity=PerGroup(task.group), intx_choose_qparams_algorithm=way
    )
    return config, "IntxWeightOnlyConfig, symmetric, stored in a byte for each code"


def main() -> None:
    """Runs one side."""
    from torchao.quantization import quantize_

    task = Task.read()
    model, _ = model_and_tokenizer(task)
    config, note = config_of(task)

    def in_block(module: torch.nn.Module, name: str) -> bool:
        return isinstance(module, torch.nn.Linear) and name.endswith("_proj")

    _, figures = measured(lambda: quantize_(model, config, filter_fn=in_block))
    dense, parts = {}, {}
    for name, module in model.named_modules():
        if in_block(module, name):
            # What the layer computes for unit inputs: not every packed form here can be unpacked.
            with torch.no_grad():
                dense[f"{name}.weight"] = module(torch.eye(module.in_features)).T
            weight: Any = module.weight
            parts |= {f"{name}.{part}": getattr(weight, part) for part in weight.tensor_data_names}
    task.stored.mkdir()
    save_file({name: value.contiguous() for name, value in parts.items()}, task.stored / "model.safetensors")
    finish(task, dense, figures, note, "torchao", "transformers")


if __name__ == "__main__":
    main()
