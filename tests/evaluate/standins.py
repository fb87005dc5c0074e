"""Small untrained stand-ins for opened models: they test plumbing, never quality."""

from types import SimpleNamespace

import torch

torch.set_num_threads(1)


def opened(model, **parts):
    """What `open_model` gives, as far as tasks use it."""
    known = {"processor": None, "tokenizer": None, "defaults": {}, "source": "stand-in", **parts}
    return SimpleNamespace(model=model, config=model.config, **known)


class ByteTokenizer:
    """One token a byte: its id is the byte's value. `bos` is put first where special tokens are asked for."""

    def __init__(self, bos=None):
        self.bos_token_id = bos

    def __call__(self, text, add_special_tokens=True, **_):
        ids = list(text.encode())
        return {"input_ids": [self.bos_token_id, *ids] if add_special_tokens and self.bos_token_id is not None else ids}


def llama(vocabulary=256, positions=64):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=positions, initializer_range=0.5,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()
