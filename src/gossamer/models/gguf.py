"""GGUF files of Llama-type models, read by transformers and turned into a plain float32 model."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gossamer.core.errors import ModelError
from gossamer.models.loading import first_line, plain_copy

if TYPE_CHECKING:
    from torch import nn

_SINGLE_DIGITS = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell"})
"""llama.cpp's names of the text splits that are GPT-2's with every digit on its own, which transformers leaves out."""


@dataclass(frozen=True)
class GgufTensor:
    """One stored tensor: GGUF's own name, its type (`Q4_1`, `F32`, …), elements and bytes."""

    name: str
    dtype: str
    elements: int
    bytes: int


@dataclass(frozen=True)
class GgufFile:
    """What a GGUF file says about itself.

    `architecture` is GGUF's name of the model's type, `split` llama.cpp's name of how text is cut before it is merged
    into tokens; both are empty if the file does not say.
    """

    architecture: str
    split: str
    tensors: tuple[GgufTensor, ...]


def read_gguf(path: Path) -> GgufFile:
    """The contents of a GGUF file, without its values. Raises `ModelError` if it is not a whole GGUF file."""
    try:
        with path.open("rb") as stream:
            if stream.read(4) != b"GGUF":
                raise ModelError(f"{path} is not a GGUF file: it does not start with GGUF")
        found = path.stat()
        return _read(path.resolve(), found.st_size, found.st_mtime_ns)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    except ModelError:
        raise
    except Exception as error:  # the reader raises whatever numpy raises on a short or garbled file
        raise ModelError(f"{path} is a damaged or truncated GGUF file; copy it again ({first_line(error)})") from error


@functools.lru_cache(maxsize=4)
def _read(path: Path, size: int, changed: int) -> GgufFile:
    """Reading walks through the whole vocabulary, which takes seconds; `size` and `changed` tell a file's versions."""
    from gguf import GGUFReader

    reader = GGUFReader(str(path))

    def word(key: str) -> str:
        entry = reader.get_field(key)
        return str(entry.contents()) if entry is not None else ""

    return GgufFile(
        word("general.architecture"),
        word("tokenizer.ggml.pre"),
        tuple(
            GgufTensor(tensor.name, tensor.tensor_type.name, int(tensor.n_elements), int(tensor.n_bytes))
            for tensor in reader.tensors
        ),
    )


def parameter_names(architecture: str, model: Any) -> dict[str, str]:
    """GGUF's tensor name → parameter of `model`. A parameter may be called as in a part of the model (`h.0` for
    `transformer.h.0`); the whole name goes first. Empty for an architecture that the gguf package does not know."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    kinds = {name: kind for kind, name in MODEL_ARCH_NAMES.items()}
    if architecture not in kinds:
        return {}
    known = get_tensor_name_map(kinds[architecture], model.config.get_text_config().num_hidden_layers)
    rest = {name: name for name in model.state_dict()}
    found: dict[str, str] = {}
    while rest:
        for name, shortened in rest.items():
            stored = known.get_name(shortened, try_suffixes=(".weight", ".bias"))
            if stored is not None:
                found.setdefault(stored, name)
        rest = {name: short.split(".", 1)[1] for name, short in rest.items() if "." in short}
    return found


def gguf_config(path: Path) -> Any:
    """The transformers config in a GGUF file. Raises `ModelError` for an architecture that transformers cannot read."""
    from transformers import AutoConfig

    read_gguf(path)
    try:
        config = AutoConfig.from_pretrained(str(path.parent), gguf_file=path.name)
    except Exception as error:
        raise ModelError(
            f"{path} holds a model that cannot be opened ({first_line(error)}); GGUF files of Llama-type models can"
        ) from error
    if not config.architectures:
        config.architectures = [_causal_class(config)]
    return config


def gguf_model(path: Path, config: Any) -> "nn.Module":
    """The model with every tensor dequantised to float32.

    Raises `ModelError` as `gguf_config` does, and if the file lacks a tensor of the model.
    """
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    auto: Any = AutoModelForCausalLM
    try:
        loaded, report = auto.from_pretrained(
            str(path.parent), config=config, gguf_file=path.name, dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True), output_loading_info=True,
        )  # fmt: skip
    except Exception as error:
        raise ModelError(f"{path} cannot be loaded ({first_line(error)})") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(f"{path} holds no whole model: {len(missing)} tensors are missing, first {missing[0]}")
    return plain_copy(loaded, config)


def gguf_tokenizer(path: Path) -> Any | None:
    """The tokenizer in a GGUF file, or None if it has none that transformers can build."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    except Exception:
        return None
    if read_gguf(path).split in _SINGLE_DIGITS:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    return tokenizer


def _causal_class(config: Any) -> str:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, ""))
