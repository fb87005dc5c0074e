"""What was built is kept in the user's cache folder, under a key of all that it was built from."""

import os
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from gossamer.core.errors import OutputError
from gossamer.core.files import digest, writing_directory


def built(kind: str, key: tuple[object, ...], make: Callable[[Path], None]) -> Path:
    """The folder of what `make` writes into the folder it is given; made once, by one process, for a kind and key.

    Raises `OutputError` where the cache (`$XDG_CACHE_HOME/gossamer/eda`) cannot be written, and what `make` raises;
    then nothing is kept.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gossamer" / "eda"
    target = home / f"{kind}-{digest(*key)}"
    if target.exists():
        return target
    lock = FileLock(target.with_suffix(".lock"))
    try:
        home.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise OutputError(f"cannot write {home}: {error.strerror}; set XDG_CACHE_HOME to a writable folder") from error
    try:
        if not target.exists():
            with writing_directory(target) as folder:
                make(folder)
    finally:
        lock.release()
    return target
