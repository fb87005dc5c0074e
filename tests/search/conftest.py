"""A model that the jobs of this room can open, compress and write."""

from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A random Llama with tiny-lm's tokenizer, sharpened so that rounding matters: plumbing only."""
    import transformers

    from gossamer.models.embedded import embedded_model

    directory = tmp_path_factory.mktemp("model") / "lm"
    tokenizer = transformers.AutoTokenizer.from_pretrained(embedded_model("tiny-lm"))
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True, initializer_range=0.3,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    (directory / "gossamer.json").write_text('{"task": "text", "data": "heldout"}')
    return directory
