"""The tensors of a checkpoint as they lie on disk: names, types, shapes and bytes, without loading any."""

import hashlib
import json
import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gossamer.core.errors import ModelError
from gossamer.core.files import canonical_json

_CHUNK = 1 << 22
_VOLATILE = {
    "transformers_version", "_name_or_path", "name_or_path", "dtype", "torch_dtype", "use_cache", "output_attentions",
    "output_hidden_states", "return_dict", "id2label", "label2id", "problem_type", "chunk_size_feed_forward",
    "is_local", "local_files_only", "_commit_hash", "_attn_implementation_internal", "_experts_implementation_internal",
}  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """One tensor in a safetensors file: `offset` and `bytes` in that file, `dtype` as safetensors names it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    bytes: int


def safetensors_files(directory: Path) -> tuple[Path, ...]:
    """The weight files of a Hugging Face directory, in order; empty if it holds none.

    Raises `ModelError` if the index is malformed or names a file that is not there.
    """
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ModelError(f"{index} is malformed: it must hold a weight_map of tensor names to files") from error
        missing = [name for name in names if not (directory / name).is_file()]
        if missing:
            raise ModelError(f"{directory} is incomplete: {missing[0]}, which its index names, is missing")
        return tuple(directory / name for name in names)
    single = directory / "model.safetensors"
    return (single,) if single.is_file() else tuple(sorted(directory.glob("*.safetensors")))


def read_header(path: Path) -> tuple[StoredTensor, ...]:
    """The tensors of one safetensors file. Raises `ModelError` if it is truncated or not such a file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            start = stream.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= size - 8:
                raise ModelError(f"{path} is a truncated safetensors file ({size} bytes); copy it again")
            header: dict[str, Any] = json.loads(stream.read(length))
        tensors = []
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            low, high = entry["data_offsets"]
            offset = 8 + length + low
            tensors.append(StoredTensor(name, entry["dtype"], tuple(entry["shape"]), path, offset, high - low))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} is not a safetensors file: its header is malformed; copy it again") from error
    end = max((tensor.offset + tensor.bytes for tensor in tensors), default=8 + length)
    if end != size:
        raise ModelError(f"{path} is truncated: it has {size} bytes and its header promises {end}; copy it again")
    return tuple(tensors)


def stored_tensors(directory: Path) -> tuple[StoredTensor, ...]:
    """Every tensor of a Hugging Face directory, sorted by name. Raises `ModelError` for a damaged file."""
    files = safetensors_files(directory)
    return tuple(sorted((tensor for file in files for tensor in read_header(file)), key=lambda tensor: tensor.name))


def fingerprint_of(config: dict[str, Any], tensors: Iterable[StoredTensor]) -> str:
    """`sha256:` of the config's essentials and every tensor's name, type, shape and content, in order of the names.

    How the tensors are spread over files does not matter, nor do config entries that do not change what is computed.
    """
    return fingerprint_parts(config, ((_key(tensor), tensor) for tensor in tensors))


def fingerprint_parts(config: dict[str, Any], parts: Iterable[tuple[str, StoredTensor]]) -> str:
    """As `fingerprint_of`, with each part named by the caller; a part's bytes are streamed from its file."""
    total = hashlib.sha256(canonical_json(_essentials(config)).encode())
    for key, tensor in parts:
        total.update(f"\n{key} ".encode())
        total.update(_content(tensor.file, tensor.offset, tensor.bytes, tensor.file.stat().st_mtime_ns))
    return f"sha256:{total.hexdigest()}"


def elements(tensor: StoredTensor) -> int:
    """Number of elements."""
    return math.prod(tensor.shape)


def _key(tensor: StoredTensor) -> str:
    return f"{tensor.name} {tensor.dtype} {list(tensor.shape)}"


_DIGESTS: dict[tuple[str, int, int, int], bytes] = {}


def _content(file: Path, offset: int, size: int, modified: int) -> bytes:
    """SHA-256 of a stretch of a file, remembered while the file keeps its modification time."""
    key = (str(file.resolve()), offset, size, modified)
    if key not in _DIGESTS:
        digest = hashlib.sha256()
        with file.open("rb") as stream:
            stream.seek(offset)
            left = size
            while left and (chunk := stream.read(min(_CHUNK, left))):
                digest.update(chunk)
                left -= len(chunk)
        _DIGESTS[key] = digest.digest()
    return _DIGESTS[key]


def _essentials(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _essentials(item) for key, item in value.items() if key not in _VOLATILE}
    if isinstance(value, (list, tuple)):
        return [_essentials(item) for item in value]
    return value
