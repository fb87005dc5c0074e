"""Opening a model, whatever it is stored as.

A reference is the name of an embedded model, a Hugging Face directory or hub id, a `.gguf` file, a llama2.c `.bin`
file, or, where no weights are needed, a `config.json` or the name of a well-known model (see `embedded.py`).
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gossamer.core.errors import ModelError
from gossamer.models.embedded import embedded_model, embedded_models, known_config, known_configs
from gossamer.models.hierarchy import Hierarchy
from gossamer.models.loading import dense_config, load_packed, load_weights, meta_model, quiet, read_config
from gossamer.models.memory import IN_MEMORY, Memory

if TYPE_CHECKING:
    from torch import nn

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "tokenizer*"]


@dataclass(frozen=True, eq=False)
class Opened:
    """An open model.

    `model` is in eval mode, float32, without gradients; on the meta device, without values, if opened without weights.
    Low-rank matrices beside a checkpoint have been added to its weights.
    `fingerprint` is `sha256:<64 hex>` over the config's essentials and the stored tensors, however they are spread over
    files; without weights, over the config alone. `stored_bytes` are the bytes of the tensors on disk, 0 if there are
    none. `file` is the directory or file that the model was read from, None for a config alone. `defaults` are the
    task, data and prompt that `gossamer.json` suggests. `memory` is where the weights live; it rests whenever a block
    has run.
    """

    model: "nn.Module"
    hierarchy: Hierarchy
    config: Any
    source: str
    fingerprint: str
    processor: Any | None = None
    tokenizer: Any | None = None
    defaults: dict[str, Any] = field(default_factory=dict)
    stored_bytes: int = 0
    file: Path | None = None
    memory: Memory = IN_MEMORY


@dataclass(frozen=True)
class Located:
    """Where a reference leads: `kind` is how the model is stored, `path` its file or directory."""

    kind: str
    path: Path
    source: str


def open_model(ref: str, *, weights: bool = True, memory: Memory = IN_MEMORY) -> Opened:
    """Opens `ref`, its weights in `memory`.

    Raises `ModelError` with one line that names the file at fault and what would be accepted.
    """
    place = locate(ref, weights=weights)
    with quiet():
        opened = _OPENERS[place.kind](place, weights, memory)
    return _moved(opened, memory) if weights and memory is not IN_MEMORY else opened


def open_packed(ref: str) -> Opened:
    """Opens `ref` without unpacking: the model of a directory is as it is stored (see `load_packed`), those of single
    files are as `open_model` opens them. Raises as that does."""
    place = locate(ref)
    if place.kind != "directory":
        return open_model(ref)
    with quiet():
        config = read_config(place.path / "config.json")
        outline = _open_directory(place, weights=True, memory=IN_MEMORY, load=lambda: meta_model(config, place.path))
        return replace(outline, model=load_packed(place.path, config).eval().requires_grad_(False))


def _moved(opened: Opened, memory: Memory) -> Opened:
    """The model with all its parameters in `memory`, which rests after every block."""
    for parameter in opened.model.parameters():
        parameter.data = memory.hold(parameter.data)
        memory.rest()
    for block in opened.hierarchy.blocks():
        opened.model.get_submodule(block.module).register_forward_hook(lambda *_: memory.rest())
    return replace(opened, memory=memory)


def locate(ref: str, *, weights: bool = True) -> Located:
    """Finds what `ref` names, without reading it. Raises `ModelError` if it names nothing."""
    ref = str(ref)
    inside = embedded_model(ref)
    if inside is not None:
        return Located("directory", inside, ref)
    path = Path(ref).expanduser()
    if path.is_dir():
        return _directory(path, ref)
    if path.is_file():
        kind = {".gguf": "gguf", ".bin": "llama2c", ".json": "config"}.get(path.suffix.lower())
        if kind is None:
            raise ModelError(f"{path} is not a model: give a directory, a .gguf or a llama2.c .bin file")
        if kind == "config" and weights:
            raise ModelError(f"{path} is a config without weights: this needs weights; give the model's directory")
        return Located(kind, path, ref)
    known = known_config(ref)
    if known is not None:
        if weights:
            raise ModelError(f"{ref} ships as a config without weights: give the directory or hub id of its weights")
        return Located("config", known, ref)
    if _HUB_ID.fullmatch(ref) and path.suffix.lower() not in (".gguf", ".bin", ".json", ".safetensors", ".yaml"):
        return _directory(_from_hub(ref, weights), ref)
    names = ", ".join((*embedded_models(), *(() if weights else known_configs())))
    raise ModelError(f"model {ref} does not exist: give a directory, a .gguf or .bin file, a hub id, or one of {names}")


def _directory(path: Path, ref: str) -> Located:
    if (path / "config.json").is_file():
        return Located("directory", path, ref)
    others = sorted(file for pattern in ("*.gguf", "*.bin") for file in path.glob(pattern) if not _is_tokenizer(file))
    if len(others) == 1 and others[0].name != "pytorch_model.bin":
        return Located("gguf" if others[0].suffix == ".gguf" else "llama2c", others[0], ref)
    hint = f"; it holds {', '.join(file.name for file in others[:3])}: name one" if others else ""
    raise ModelError(f"{path} is not a model: it has no config.json{hint}")


def _is_tokenizer(path: Path) -> bool:
    return re.fullmatch(r"tok\w*\.bin", path.name) is not None


def _from_hub(ref: str, weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    patterns = _HUB_FILES if weights else ["*.json", "*.model", "*.txt", "*.jinja"]
    try:
        return Path(snapshot_download(ref, allow_patterns=patterns, local_files_only=True))
    except Exception:  # not in the cache yet
        pass
    try:
        return Path(snapshot_download(ref, allow_patterns=patterns))
    except Exception as error:
        raise ModelError(
            f"model {ref} is neither a path here, nor cached, nor reachable on the Hugging Face hub "
            f"({type(error).__name__}): check the spelling, the network and your access"
        ) from error


# ---------------------------------------------------------------------------------------------------- openers


def _open_directory(
    place: Located, weights: bool, memory: Memory, load: "Callable[[], nn.Module] | None" = None
) -> Opened:
    from gossamer.models.adapter import FOLDER, read_adapter
    from gossamer.models.stored import fingerprint_of, stored_tensors

    config = read_config(place.path / "config.json")
    tensors = stored_tensors(place.path)
    if (place.path / FOLDER).is_dir():
        tensors = (*tensors, *stored_tensors(place.path / FOLDER))
    essentials = config.to_dict()
    if weights and not tensors:
        found = next((file.name for file in place.path.glob("pytorch_model*.bin")), None)
        what = f"only {found}, which is a pickle" if found else "no weights"
        raise ModelError(f"{place.path} has a config but {what}: model.safetensors is needed")
    if load is None:
        model = load_weights(place.path, config, memory) if weights else meta_model(config, place.path)
        for module, matrix in read_adapter(place.path).items() if weights else ():
            weight = model.get_parameter(f"{module}.weight")
            weight.data += matrix.dense().reshape(weight.shape)
    else:
        model = load()
    return _finish(
        place, model, dense_config(config),
        fingerprint=fingerprint_of(essentials, tensors if weights else ()),
        stored=sum(tensor.bytes for tensor in tensors),
        extras=weights,
    )  # fmt: skip


def _open_config(place: Located, weights: bool, memory: Memory) -> Opened:
    from gossamer.models.stored import fingerprint_of

    config = read_config(place.path)
    return _finish(
        place,
        meta_model(config, place.path),
        dense_config(config),
        fingerprint_of(config.to_dict(), ()),
        0,
        extras=False,
    )


def _open_gguf(place: Located, weights: bool, memory: Memory) -> Opened:
    from gossamer.models import gguf

    tensors = gguf.read_gguf(place.path).tensors
    config = gguf.gguf_config(place.path)
    model = gguf.gguf_model(place.path, config) if weights else meta_model(config, place.path)
    tokenizer = _gguf_tokenizer(place.path) if weights else None
    stored = sum(tensor.bytes for tensor in tensors)
    return _finish(place, model, config, _file_fingerprint(config, place.path, weights), stored, tokenizer=tokenizer)


def _gguf_tokenizer(path: Path) -> Any | None:
    """The file's own tokenizer, else the one whose files lie beside it."""
    from gossamer.models.gguf import gguf_tokenizer
    from gossamer.models.processors import load_tokenizer

    own = gguf_tokenizer(path)
    return own if own is not None else load_tokenizer(path.parent)


def _open_llama2c(place: Located, weights: bool, memory: Memory) -> Opened:
    from transformers import LlamaConfig, LlamaForCausalLM

    from gossamer.models import llama2c

    header = llama2c.read_header(place.path)
    config = LlamaConfig(**header.config())
    tokenizer = None
    if weights:
        model: nn.Module = LlamaForCausalLM(config)
        model.load_state_dict(llama2c.read_state(place.path, header), strict=header.shared is False)
        vocabulary = llama2c.find_tokenizer(place.path, header.vocabulary)
        tokenizer = llama2c.build_tokenizer(vocabulary, header.vocabulary) if vocabulary else None
    else:
        model = meta_model(config, place.path)
    fingerprint = _file_fingerprint(config, place.path, weights)
    return _finish(place, model, config, fingerprint, header.weight_bytes, tokenizer=tokenizer)


_OPENERS = {
    "directory": _open_directory,
    "config": _open_config,
    "gguf": _open_gguf,
    "llama2c": _open_llama2c,
}


def _finish(
    place: Located,
    model: "nn.Module",
    config: Any,
    fingerprint: str,
    stored: int,
    *,
    tokenizer: Any | None = None,
    extras: bool = False,
) -> Opened:
    from gossamer.models.structure import hierarchy_of

    model.eval()
    model.requires_grad_(False)
    directory = place.path if place.path.is_dir() else place.path.parent
    processor = None
    if extras:
        from gossamer.models.processors import load_processor, load_tokenizer

        processor = load_processor(directory)
        tokenizer = getattr(processor, "tokenizer", None) or load_tokenizer(directory)
    return Opened(
        model, hierarchy_of(model, config), config, place.source, fingerprint, processor, tokenizer,
        _defaults(directory), stored, place.path if place.kind != "config" else None,
    )  # fmt: skip


def _file_fingerprint(config: Any, path: Path, weights: bool) -> str:
    from gossamer.models.stored import StoredTensor, fingerprint_parts

    whole = StoredTensor("file", path.suffix, (), path, 0, path.stat().st_size)
    return fingerprint_parts(config.to_dict(), [(path.suffix, whole)] if weights else [])


def _defaults(directory: Path) -> dict[str, Any]:
    path = directory / "gossamer.json"
    if not path.is_file():
        return {}
    try:
        defaults = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is not valid JSON: it may hold task, data and prompt") from error
    return defaults if isinstance(defaults, dict) else {}
