"""A language model written as a GGUF file, whose tensors keep the codes that they are stored with.

Names, keys and tensor layouts are those of llama.cpp's converter, by way of the gguf package's own tables. Only what
`gguf.py` reads back is written: `read_back` proves that nothing the model needs is left unsaid.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gossamer.core.errors import ModelError
from gossamer.core.progress import SILENT, Progress
from gossamer.models.gguf import gguf_config, gguf_model, parameter_names
from gossamer.models.gguf_blocks import Encoded, encode, encode_dense
from gossamer.models.gguf_vocabulary import vocabulary_of
from gossamer.models.loading import quiet
from gossamer.models.packed import QuantizedTensor
from gossamer.models.ties import Ties
from gossamer.models.widths import FIELD

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from gossamer.models.open import Opened


@dataclass(frozen=True)
class Architecture:
    """GGUF's name of a model type. `interleaved`: the two halves of a head that rotate together lie row by row in turn.
    `norm_shift` is what GGUF adds to the weights of norms."""

    name: str
    interleaved: bool = False
    norm_shift: float = 0.0


ARCHITECTURES = {
    "llama": Architecture("llama", interleaved=True),
    "mistral": Architecture("llama", interleaved=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "gemma2": Architecture("gemma2", norm_shift=1.0),
    "gemma3_text": Architecture("gemma3", norm_shift=1.0),
}
"""Model types of transformers' configs that can be written."""

_SAID = (
    "head_dim", "rope_parameters", "layer_types", "sliding_window", "attention_bias", "mlp_bias", "hidden_act",
    "hidden_activation", "attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar",
)  # fmt: skip
"""Settings that change what is computed, and that a file of another architecture's habits may leave unsaid."""


@dataclass(frozen=True)
class Written:
    """What a file holds: `types` counts its tensors by ggml type, `notes` are sentences on what is not exact."""

    types: dict[str, int]
    notes: tuple[str, ...]


def write_gguf(
    opened: "Opened", codes: Mapping[str, QuantizedTensor], path: Path, progress: Progress = SILENT
) -> Written:
    """Writes `opened.model` to `path`, the parameters in `codes` by their codes.

    The model takes on the values that the file holds. Raises `ModelError` for a model type, tensor or tokenizer that
    cannot be written.
    """
    import torch
    from gguf import GGML_QUANT_VERSION, GGMLQuantizationType, GGUFWriter

    architecture = architecture_of(opened)
    config: Any = opened.model.config
    vocabulary = vocabulary_of(opened.tokenizer, config.vocab_size)
    stored = {name: kept for kept, name in parameter_names(architecture.name, opened.model).items()}
    tied = Ties.of(opened.model, set()).kept
    writer = GGUFWriter(path, architecture.name)
    writer.add_name(Path(opened.source).name)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    _describe(writer, config, architecture)
    vocabulary.add_to(writer)
    types: dict[str, int] = {}
    dense, rounded = [], []
    for name, parameter in progress.track(opened.model.state_dict().items(), "export"):
        if name in tied:
            continue
        if name not in stored:
            raise ModelError(f"{opened.source}: GGUF's architecture {architecture.name} has no place for tensor {name}")
        shift = architecture.norm_shift if name.endswith("norm.weight") else 0.0
        blocks = encode(codes[name]) if name in codes else None
        encoded = blocks or encode_dense(parameter + shift)
        with torch.no_grad():
            parameter.copy_(encoded.decoded().reshape(parameter.shape) - shift)
        if name in codes and blocks is None:
            dense.append(name)
        elif not encoded.exact:
            rounded.append((encoded.kind, name))
        data = _ordered(encoded, stored[name], config) if architecture.interleaved else encoded.data
        writer.add_tensor(stored[name], data, raw_dtype=GGMLQuantizationType[encoded.kind])
        types[encoded.kind] = types.get(encoded.kind, 0) + 1
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Written(types, tuple(_notes(dense, rounded)))


def read_back(path: Path, opened: "Opened") -> "nn.Module":
    """The model in the file just written. Raises `ModelError` if a setting is not read back as `opened` has it."""
    with quiet():
        found, config = gguf_config(path), opened.model.config
    for key in _SAID:
        ours, theirs = getattr(config, key, None), getattr(found, key, None)
        if not _alike(ours or None, theirs or None):
            raise ModelError(
                f"{opened.source} has {key} {ours}, but its GGUF file would be read with {theirs}: "
                "GGUF export takes models that keep to this"
            )
    with quiet():
        return gguf_model(path, found)


def architecture_of(opened: "Opened") -> Architecture:
    config: Any = opened.model.config
    kind = config.model_type
    if kind not in ARCHITECTURES:
        raise ModelError(f"{opened.source} is of type {kind}: GGUF export takes {', '.join(ARCHITECTURES)}")
    if hasattr(config, FIELD):
        raise ModelError(f"{opened.source}: its blocks differ in width, which GGUF files of {kind} models cannot say")
    scalar = getattr(config, "query_pre_attn_scalar", None)
    if scalar is not None and scalar != config.head_dim:
        raise ModelError(
            f"{opened.source} has query_pre_attn_scalar {scalar}, llama.cpp scales attention by head_dim, "
            f"{config.head_dim}: GGUF export takes models where both are the same"
        )
    return ARCHITECTURES[kind]


def _describe(writer: Any, config: Any, architecture: Architecture) -> None:
    """The model's sizes and constants."""
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    rope = config.rope_parameters
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    if architecture.name.startswith("gemma"):
        writer.add_sliding_window(config.sliding_window)
        if config.attn_logit_softcapping:
            writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        if config.final_logit_softcapping:
            writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _ordered(encoded: Encoded, name: str, config: Any) -> "NDArray[np.generic]":
    """Query and key rows in GGUF's order. Whole rows move, so it does not matter how they are encoded."""
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None:
        return encoded.data
    data = encoded.data
    return data.reshape(heads, 2, len(data) // heads // 2, -1).swapaxes(1, 2).reshape(data.shape)


def _notes(dense: list[str], rounded: list[tuple[str, str]]) -> list[str]:
    notes = []
    if dense:
        notes.append(
            f"{_some(dense)}: stored at 16 bits, since GGUF's blocks are 32 columns wide and hold steps of 8 bits."
        )
    least = [name for kind, name in rounded if kind in ("Q4_1", "Q5_1")]
    if least:
        notes.append(f"{_some(least)}: the least value of each group is rounded to a 16-bit float, the codes are kept.")
    other = [name for kind, name in rounded if kind not in ("Q4_1", "Q5_1")]
    if other:
        notes.append(f"{_some(other)}: rounded to 16 bits.")
    return notes


def _some(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _alike(ours: Any, theirs: Any) -> bool:
    """Equal, but for what 32-bit floats round off."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        return ours.keys() == theirs.keys() and all(_alike(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, float) and isinstance(theirs, (int, float)):
        return math.isclose(ours, theirs, rel_tol=1e-6)
    return bool(ours == theirs)
