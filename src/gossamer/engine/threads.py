"""Torch's threads and those of the native engine must not want the same cores at once."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Inside, torch computes on `count` threads.

    After every product of many threads OpenMP's workers wait for the next one without giving up their cores, for some
    milliseconds. So beside the native engine, which needs the cores in just that time, torch keeps to one thread.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
