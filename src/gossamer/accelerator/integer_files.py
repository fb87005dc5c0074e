"""An integer model on disk: `model.safetensors` with every array, `integer.json` with everything else.

The JSON is the model's dataclasses, field by field; an array is the name of a tensor. Equal arrays are stored once.
"""

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from gossamer.accelerator import integer
from gossamer.accelerator.integer_model import IntegerModel
from gossamer.accelerator.wiring import Wiring
from gossamer.core.errors import ModelError
from gossamer.core.files import refuse_foreign, write_json, writing_directory

FORMAT = "gossamer-integer-1"
DESCRIPTION = "integer.json"
ARRAYS = "model.safetensors"
_KINDS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        integer.Linear, integer.Norm, integer.Attention, integer.Mlp, integer.Block, integer.Stack, Wiring,
        IntegerModel,
    )
}  # fmt: skip


def save_integer(model: IntegerModel, out: Path) -> None:
    """Writes `model` into the directory `out`, which is replaced if it holds an integer model.

    Raises:
        OutputError: a place that cannot be written or holds something else.
    """
    from safetensors.numpy import save_file

    refuse_foreign(out, DESCRIPTION)
    arrays: dict[str, np.ndarray] = {}
    described = _described(model, "", arrays, {})
    with writing_directory(out) as directory:
        save_file(arrays, directory / ARRAYS)
        write_json(directory / DESCRIPTION, {"format": FORMAT, "model": described})


def load_integer(path: Path) -> IntegerModel:
    """The integer model in the directory `path`, bit for bit as it was saved.

    Raises:
        ModelError: files that are missing, of another format, or do not fit each other.
    """
    from safetensors.numpy import load_file

    file = path / DESCRIPTION
    if not file.is_file() or not (path / ARRAYS).is_file():
        raise ModelError(f"{path} is no integer model: it lacks {DESCRIPTION} or {ARRAYS}; make one with quantize")
    try:
        described = json.loads(file.read_text(encoding="utf-8"))
        arrays: Mapping[str, np.ndarray] = load_file(path / ARRAYS)
    except Exception as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        raise ModelError(f"{file} is not of the format {FORMAT}")
    try:
        model = _restored(described["model"], arrays)
    except (KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{file} does not fit {ARRAYS} or this version: {error}") from error
    if not isinstance(model, IntegerModel):
        raise ModelError(f"{file} describes no integer model")
    return model


def _described(value: Any, place: str, arrays: dict[str, np.ndarray], known: dict[str, str]) -> Any:
    """JSON of a value; arrays go to `arrays`, `known` names those that are there by their content."""
    if isinstance(value, np.ndarray):
        kept = np.ascontiguousarray(value)
        content = sha256(f"{kept.dtype}{kept.shape}".encode() + kept.tobytes()).hexdigest()
        if content not in known:
            known[content] = place
            arrays[place] = kept
        return {"tensor": known[content]}
    if is_dataclass(value):
        inside = {
            field.name: _described(getattr(value, field.name), f"{place}.{field.name}".lstrip("."), arrays, known)
            for field in fields(value)
        }
        return {"kind": type(value).__name__, **inside}
    if isinstance(value, tuple):
        return [_described(each, f"{place}.{number}", arrays, known) for number, each in enumerate(value)]
    if isinstance(value, dict):
        return {"map": {key: _described(each, f"{place}.{key}", arrays, known) for key, each in value.items()}}
    return value


def _restored(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if isinstance(value, list):
        return tuple(_restored(each, arrays) for each in value)
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return arrays[value["tensor"]]
    if "map" in value:
        return {key: _restored(each, arrays) for key, each in value["map"].items()}
    inside = {key: _restored(each, arrays) for key, each in value.items() if key != "kind"}
    return _KINDS[value["kind"]](**inside)
