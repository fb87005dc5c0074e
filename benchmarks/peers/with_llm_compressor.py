"""llm-compressor's sides: GPTQ, AWQ, and SmoothQuant with 8-bit weights and activations."""

from typing import Any

from common import Task, finish, measured, model_and_tokenizer


def recipe(task: Task) -> tuple[list[Any], str]:
    """The modifiers of a side, and a sentence on its settings."""
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
    from llmcompressor.pipelines.cache import IntermediatesCache

    grid = {"num_bits": int(task.bits), "type": "int", "symmetric": True, "strategy": "group", "group_size": task.group}
    groups: dict[str, Any] = {"config_groups": {"all": {"targets": ["Linear"], "weights": grid}}, "ignore": ["lm_head"]}
    if task.side == "llm-compressor gptq":
        gptq = GPTQModifier(**groups, dampening_frac=0.01, block_size=128, actorder="static")
        return [gptq], "damping 0.01, static activation order, its default (full) range"
    if task.side == "llm-compressor awq":
        # It locks cached tensors in memory for a GPU, which fails where there is none and changes no value.
        IntermediatesCache.pin_memory = lambda *_: None
        return [AWQModifier(), QuantizationModifier(**groups)], "its defaults; page locking, which needs a GPU, off"
    rounding = QuantizationModifier(scheme="W8A8", targets=["Linear"], ignore=["lm_head"])
    smooth = SmoothQuantModifier(smoothing_strength=0.8)
    return [smooth, rounding], "strength 0.8, weights in whole rows, activations in 8 bits with a scale for each token"


def main() -> None:
    """Runs one side."""
    from compressed_tensors.quantization import forward_quantize
    from datasets import Dataset
    from llmcompressor import oneshot

    task = Task.read()
    model, tokenizer = model_and_tokenizer(task)
    modifiers, note = recipe(task)
    rows = {"input_ids": task.samples, "attention_mask": [[1] * len(row) for row in task.samples]}
    _, figures = measured(
        lambda: oneshot(
            model=model,
            processor=tokenizer,
            dataset=Dataset.from_dict(rows),
            recipe=modifiers,
            batch_size=task.batch,
            max_seq_length=len(task.samples[0]),
            num_calibration_samples=len(task.samples),
            shuffle_calibration_samples=False,
            pipeline="sequential",
        )
    )
    state = dict(model.state_dict())
    for name, module in model.named_modules():  # only GPTQ leaves rounded values in the weights themselves
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is not None:
            state[f"{name}.weight"] = forward_quantize(module, module.weight, "weight", scheme.weights)
    dense = {name: value for name, value in state.items() if name.endswith("weight")}
    model.save_pretrained(task.stored, save_compressed=True)
    finish(task, dense, figures, note, "llmcompressor", "transformers")


if __name__ == "__main__":
    main()
