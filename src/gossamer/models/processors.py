"""Processors and tokenizers without torchvision: images are prepared with PIL and NumPy."""

from pathlib import Path
from typing import Any

from gossamer.core.errors import ModelError
from gossamer.models.loading import first_line

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
_MARKERS = ("processor_config.json", "preprocessor_config.json")


def load_tokenizer(directory: Path) -> Any | None:
    """The tokenizer of a Hugging Face directory, or None if it ships none. Raises `ModelError` if it is damaged."""
    from transformers import AutoTokenizer

    if not any((directory / name).is_file() for name in _TOKENIZERS):
        return None
    try:
        return AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
    except Exception as error:
        raise ModelError(f"the tokenizer in {directory} cannot be read ({first_line(error)})") from error


def load_processor(directory: Path) -> Any | None:
    """The processor of a multimodal model, with PIL image classes, or None if the directory ships none.

    Raises `ModelError` if the processor's files are damaged or of an unknown kind.
    """
    from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoProcessor

    if not any((directory / name).is_file() for name in _MARKERS):
        return None
    errors: list[BaseException] = []
    pil = {"backend": "pil"}
    auto: Any
    for auto, options in ((AutoProcessor, pil), (AutoImageProcessor, pil), (AutoFeatureExtractor, {})):
        try:
            return auto.from_pretrained(str(directory), local_files_only=True, **options)
        except Exception as error:
            errors.append(error)
    raise ModelError(f"the processor in {directory} cannot be read ({first_line(errors[0])})")
