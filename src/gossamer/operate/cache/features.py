"""What a vision tower made of images, kept for when they come again."""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class ImageFeatures:
    """The features of the latest `entries` sets of images that were read, by the content of their pixels (SHA-256).

    It belongs to one model with weights that stay: elsewhere the same pixels have other features.
    """

    def __init__(self, entries: int = 8) -> None:
        self._entries = entries
        self._known: OrderedDict[bytes, Any] = OrderedDict()
        self.hits = 0

    @contextmanager
    def reused(self, model: Any) -> Iterator[None]:
        """Inside, `model` asks for features here first. A model that reads no images is as it was."""
        base = getattr(model, "base_model", model)
        encode = getattr(base, "get_image_features", None)
        if encode is None:
            yield
            return

        def remembered(*args: Any, **kwargs: Any) -> Any:
            key = digest((args, sorted(kwargs.items())))
            if key in self._known:
                self.hits += 1
            else:
                self._known[key] = encode(*args, **kwargs)
            self._known.move_to_end(key)
            while len(self._known) > self._entries:
                self._known.popitem(last=False)
            return self._known[key]

        before = vars(base).get("get_image_features")
        base.get_image_features = remembered  # on this model's instance, and only inside
        try:
            yield
        finally:
            del base.get_image_features
            if before is not None:
                base.get_image_features = before


def digest(held: Any) -> bytes:
    """SHA-256 of the tensors (type, shape, content) and other values in nested lists and tuples."""
    found = hashlib.sha256()
    _add(found, held)
    return found.digest()


def _add(found: Any, held: Any) -> None:
    if isinstance(held, Tensor):
        found.update(f"{held.dtype}{tuple(held.shape)}".encode())
        found.update(held.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    elif isinstance(held, (list, tuple)):
        found.update(f"[{len(held)}]".encode())
        for part in held:
            _add(found, part)
    else:
        found.update(repr(held).encode())
