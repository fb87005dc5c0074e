"""Opening a model that is to write."""

from gossamer.core.errors import ModelError
from gossamer.models.open import Opened, open_model


def open_writer(ref: str) -> Opened:
    """The open model `ref`. Raises `ModelError` unless it continues text."""
    opened = open_model(ref)
    if getattr(opened.config, "is_encoder_decoder", False) or not getattr(opened.model, "can_generate", bool)():
        raise ModelError(f"{ref} does not continue text: give a language or vision-language model")
    return opened
