"""Checkpoints whose blocks differ in width: the config entry that says how, and the code that they carry.

`modeling_gossamer.py` is that code: Gossamer runs its own copy, plain transformers the checkpoint's, once trusted.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gossamer.core.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

FIELD = "gossamer_widths"
"""The entry of a config that holds module path → [outputs, inputs] of linear layers."""

CODE = "modeling_gossamer.py"
"""The file in a checkpoint, a copy of the one beside this."""


def class_with_widths(name: str) -> Any | None:
    """The class of models with the entry, for a class of transformers or its own name; None if there is no such."""
    from gossamer.models import modeling_gossamer

    return getattr(modeling_gossamer, modeling_gossamer.PREFIX + name.removeprefix(modeling_gossamer.PREFIX), None)


def write_code(model: "nn.Module", folder: Path, config: dict[str, Any]) -> None:
    """Puts what plain transformers needs to load a `model` with the entry into its `folder` and written `config`.

    Raises `ModelError` where no auto class of transformers leads to the model's class.
    """
    name = type(model).__name__
    autos = list(auto_classes(model))
    if not autos:
        raise ModelError(f"no auto class of transformers leads to {name}: widths that differ by block cannot be stored")
    config["auto_map"] = {auto: f"{Path(CODE).stem}.{name}" for auto in autos}
    shutil.copyfile(Path(__file__).with_name(CODE), folder / CODE)


def auto_classes(model: "nn.Module") -> Iterator[str]:
    """The names of transformers' auto classes that lead from the model's config to the class it extends, sorted."""
    import transformers

    family = type(model).__mro__[2]
    for name in sorted(dir(transformers)):
        mapping: Any = getattr(getattr(transformers, name), "_model_mapping", None) if name.startswith("Auto") else None
        if mapping is not None and type(model.config) in mapping:
            found = mapping[type(model.config)]
            if family in (found if isinstance(found, tuple) else (found,)):
                yield name


def trusted_class(directory: Path, config: dict[str, Any]) -> Any:
    """The auto class that loads `directory`, of this `config`, with the code there.

    Raises `ModelError` unless that code is Gossamer's own, and where the config names no auto class.
    """
    import transformers

    ours, theirs = Path(__file__).with_name(CODE), directory / CODE
    if not theirs.is_file() or theirs.read_bytes() != ours.read_bytes():
        raise ModelError(f"{theirs} is missing or is not the file of this version of Gossamer: write the model anew")
    auto = getattr(transformers, min(config.get("auto_map") or [""]), None)
    if auto is None:
        raise ModelError(f"{directory}: the auto_map of config.json names no auto class of transformers")
    return auto
