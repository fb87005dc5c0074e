"""transformers' sides: its own code as it stands, and compiled. The weights are 16-bit floats, whatever grid they lie
on; torchao's sides pack them anew at the same bits."""

from typing import Any

import torch
from task import Task, contest
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache


def packed(model: torch.nn.Module, bits: int) -> str:
    """Packs the blocks' layers by torchao, groups of 32; a sentence on how."""
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
    from torchao.quantization import Int8WeightOnlyConfig, PerGroup, quantize_

    config: Any = (
        Int8WeightOnlyConfig(granularity=PerGroup(32)) if bits == 8 else PrototypeInt4WeightOnlyConfig(group_size=32)
    )
    quantize_(model, config, filter_fn=lambda module, name: isinstance(module, torch.nn.Linear))
    return type(config).__name__


def main() -> None:
    """Runs one side."""
    task = Task.read()
    torch.set_num_threads(task.threads)
    torch.set_grad_enabled(False)
    model: Any = AutoModelForCausalLM.from_pretrained(task.dense, dtype=torch.bfloat16).eval()
    note = packed(model, task.bits) if "torchao" in task.side else "bfloat16"
    compiled = "compiled" in task.side
    run = torch.compile(model, dynamic=False) if compiled else model
    state: dict[str, Any] = {}

    def ids(tokens: list[int]) -> int:
        past = state["cache"].get_seq_length() if not compiled else state["length"]
        place = torch.arange(int(past), int(past) + len(tokens))
        given: dict[str, Any] = {"cache_position": place} if compiled else {}
        output = run(
            input_ids=torch.tensor([tokens]), position_ids=place[None], past_key_values=state["cache"],
            use_cache=True, logits_to_keep=1, **given,
        )  # fmt: skip
        state["length"] = past + len(tokens)
        return int(output.logits[0, -1].argmax())

    def read(prompt: list[int]) -> int:
        longest = -(-(len(prompt) + task.new + 1) // 64) * 64
        state["cache"] = StaticCache(model.config, max_cache_len=longest) if compiled else DynamicCache()
        state["length"] = 0
        return ids(prompt)

    contest(task, read, lambda token: ids([token]), note=note)


if __name__ == "__main__":
    main()
