"""Writing files so that nothing is ever half-written: beside the target, then renamed into place."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gossamer.core.errors import OutputError


def _refuse(path: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot write {path}: {error.strerror or error}; choose a writable place with free space")


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yields a temporary file path beside `path`; on success it is renamed to `path`, on failure removed.

    Raises `OutputError` where the place cannot be written or the disk is full.
    """
    temporary = path.parent / f".{path.name}.{os.getpid()}.partial"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise _refuse(path, error) from error
    finally:
        temporary.unlink(missing_ok=True) if _is_accessible(temporary) else None


@contextmanager
def writing_directory(path: Path) -> Iterator[Path]:
    """Yields a temporary directory beside `path` that replaces `path` on success and is removed on failure."""
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_dir():
            raise OutputError(f"cannot write {path}: a file is in the way; choose a directory")
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
        temporary.chmod(0o755)
        yield temporary
        _open_up(temporary)
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except OSError as error:
        raise _refuse(path, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _open_up(folder: Path) -> None:
    """Gives every file the permissions that new files get here: safetensors leaves its files to their owner alone."""
    new = folder / f".{os.getpid()}.new"
    new.touch()
    usual = new.stat().st_mode
    new.unlink()
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            file.chmod(file.stat().st_mode | usual)


def refuse_foreign(path: Path, marker: str) -> None:
    """Raises `OutputError` if `path` is a directory with content but without `marker`, the file that tells an earlier
    output, which may be replaced."""
    if path.is_dir() and not (path / marker).exists() and any(path.iterdir()):
        raise OutputError(f"{path} holds something else already: choose another --out, or empty it first")


def _is_accessible(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically."""
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def canonical_json(value: Any) -> str:
    """One spelling for each value: sorted keys, no spaces. For hashing."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON atomically."""
    write_text(path, json.dumps(value, indent=1, default=str) + "\n")


def digest(*values: Any) -> str:
    """A short content key (16 hex digits of SHA-256) of JSON-able values."""
    return hashlib.sha256(canonical_json(values).encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
