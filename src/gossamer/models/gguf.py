"""GGUF files of Llama-type models, read by transformers and turned into a plain float32 model."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gossamer.core.errors import ModelError
from gossamer.models.loading import first_line, plain_copy

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class GgufTensor:
    """One stored tensor: GGUF's own name, its type (`Q4_1`, `F32`, …), elements and bytes."""

    name: str
    dtype: str
    elements: int
    bytes: int


def gguf_tensors(path: Path) -> tuple[GgufTensor, ...]:
    """The tensors that a GGUF file holds. Raises `ModelError` if it is not a whole GGUF file."""
    from gguf import GGUFReader

    try:
        with path.open("rb") as stream:
            if stream.read(4) != b"GGUF":
                raise ModelError(f"{path} is not a GGUF file: it does not start with GGUF")
        reader = GGUFReader(str(path))
        return tuple(
            GgufTensor(tensor.name, tensor.tensor_type.name, int(tensor.n_elements), int(tensor.n_bytes))
            for tensor in reader.tensors
        )
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    except ModelError:
        raise
    except Exception as error:  # the reader raises whatever numpy raises on a short or garbled file
        raise ModelError(f"{path} is a damaged or truncated GGUF file; copy it again ({first_line(error)})") from error


def gguf_config(path: Path) -> Any:
    """The transformers config in a GGUF file. Raises `ModelError` for an architecture that transformers cannot read."""
    from transformers import AutoConfig

    gguf_tensors(path)
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
    """The model with every tensor dequantised to float32. Raises `ModelError` as `gguf_config` does."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        loaded = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32)
    except Exception as error:
        raise ModelError(f"{path} cannot be loaded ({first_line(error)})") from error
    return plain_copy(loaded, config)


def gguf_tokenizer(path: Path) -> Any | None:
    """The tokenizer in a GGUF file, or None if it has none that transformers can build."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    except Exception:
        return None


def _causal_class(config: Any) -> str:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, ""))
