"""The common judge: the plain model with a side's weights in it, one mean loss in nats for each test window.

Where a side rounds activations, the inputs of the blocks' linear layers are rounded as its format says: symmetric,
8 bits, a scale for each token.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def rounded(values: torch.Tensor) -> torch.Tensor:
    """`values` (..., columns) on 8-bit grids, one for each token."""
    scale = values.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(values.dtype).tiny) / 127.5
    return (values / scale).round().clamp(-128, 127) * scale


def main() -> None:
    """Prints the losses as a line of JSON."""
    folder = Path(sys.argv[1])
    asked = json.loads((folder / "judge.json").read_text())
    torch.set_num_threads(asked["threads"])
    model: Any = AutoModelForCausalLM.from_pretrained(asked["model"], dtype=torch.float32).eval()
    weights = folder / "weights.safetensors"
    if weights.exists():
        state = load_file(weights)
        blocks = {name for name in model.state_dict() if name.endswith("_proj.weight")}
        missing = model.load_state_dict(state, strict=False)
        if missing.unexpected_keys or not blocks <= set(state):
            sys.exit("the side's weights do not fit the model")
    if asked["round_activations"]:
        for name, module in model.named_modules():
            if name.endswith("_proj"):
                module.register_forward_pre_hook(lambda _, inputs: (rounded(inputs[0]),))
    losses = []
    with torch.inference_mode():
        for row in torch.tensor(json.loads((folder / "test.json").read_text())):
            logits = model(row[None]).logits[0, :-1]
            losses.append(float(torch.nn.functional.cross_entropy(logits, row[1:])))
    print("\n" + json.dumps({"window_losses": losses}))


if __name__ == "__main__":
    main()
