"""Where the tensors of a large model live: in ordinary memory, or in a file that is mapped into it.

A mapped tensor is an ordinary one to whoever computes with it. Its pages are read when they are touched and given back
by `rest()`, so a job that works on one block at a time needs the memory of one block.
"""

import mmap
import os
import tempfile
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakSet

from gossamer.core.errors import OutputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_LEAST, _MOST = 1 << 24, 1 << 28


class Memory:
    """Ordinary memory: tensors stay where they are."""

    def empty(self, shape: "tuple[int, ...]", dtype: "torch.dtype") -> "Tensor":
        """A tensor without values yet."""
        import torch

        return torch.empty(shape, dtype=dtype)

    def hold(self, tensor: "Tensor") -> "Tensor":
        """An equal tensor that lives here: `tensor` itself if it does already."""
        return tensor

    def copy(self, tensor: "Tensor") -> "Tensor":
        """An equal tensor of its own that lives here."""
        return tensor.clone()

    def rest(self) -> None:
        """What lives here is not needed for now. Values stay as they are."""

    def part(self) -> "Memory":
        """A place of the same kind for what lives shortly: its room is free again once it and its tensors are gone."""
        return self


IN_MEMORY = Memory()


class Scratch(Memory):
    """A file without a name beside `output`, mapped: gone with its tensors, however the process ends.

    Its room is taken in chunks and never given back before all of a chunk's tensors are gone. Raises `OutputError`
    where the folder that `output` is in cannot be made, or has no room left.
    """

    def __init__(self, output: Path) -> None:
        self._output, self._folder = output, output.parent
        self._chunks: list[tuple[int, mmap.mmap]] = []
        self._used = 0
        self._parts: WeakSet[Scratch] = WeakSet()

    def empty(self, shape: "tuple[int, ...]", dtype: "torch.dtype") -> "Tensor":
        """A tensor without values yet, at the beginning of a page."""
        import torch

        size = prod(shape) * dtype.itemsize
        if not size:
            return torch.empty(shape, dtype=dtype)
        if not self._chunks or self._used + size > len(self._chunks[-1][1]):
            self._grow(size)
        offset, self._used = self._used, self._used + -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        raw = torch.frombuffer(self._chunks[-1][1], dtype=torch.uint8, count=size, offset=offset)
        return raw.view(dtype).reshape(shape)

    def hold(self, tensor: "Tensor") -> "Tensor":
        """An equal tensor in the file."""
        address = tensor.data_ptr()
        if any(start <= address < start + len(chunk) for start, chunk in self._chunks):
            return tensor
        return self.copy(tensor)

    def copy(self, tensor: "Tensor") -> "Tensor":
        """An equal tensor of its own in the file."""
        return self.empty(tuple(tensor.shape), tensor.dtype).copy_(tensor)

    def rest(self) -> None:
        """Gives the pages back to the system, which keeps them in the file."""
        for _, chunk in self._chunks:
            if hasattr(mmap, "MADV_DONTNEED"):
                chunk.madvise(mmap.MADV_DONTNEED)
        for part in self._parts:
            part.rest()

    def part(self) -> Memory:
        """A file of its own beside this one, which rests with it."""
        part = Scratch(self._output)
        self._parts.add(part)
        return part

    def _grow(self, size: int) -> None:
        import torch

        taken = sum(len(chunk) for _, chunk in self._chunks)
        size = max(min(max(_LEAST, taken), _MOST), -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._folder) as file:
                if hasattr(os, "posix_fallocate"):  # a full disk is found here and not by a signal on a later write
                    os.posix_fallocate(file.fileno(), 0, size)
                else:
                    file.truncate(size)
                chunk = mmap.mmap(file.fileno(), size)
        except OSError as error:
            raise OutputError(
                f"cannot keep {size:,} bytes beside {self._output} ({error.strerror}): choose an --out with free space"
            ) from error
        self._chunks.append((torch.frombuffer(chunk, dtype=torch.uint8).data_ptr(), chunk))
        self._used = 0
