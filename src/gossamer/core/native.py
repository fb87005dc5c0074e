"""What compiled libraries print, straight to the process's standard output and past Python."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def native_output_to(descriptor: int) -> Iterator[None]:
    """Inside, standard output of the process goes to this file descriptor; Python's own goes with it."""
    import ctypes

    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(descriptor, 1)
    try:
        yield
    finally:
        with suppress(OSError, AttributeError, TypeError):  # where there is no C library to ask
            ctypes.CDLL(None).fflush(None)
        os.dup2(kept, 1)
        os.close(kept)
