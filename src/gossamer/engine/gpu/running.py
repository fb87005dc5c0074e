"""Models on a GPU: opened without unpacking, their codes packed for its kernels, the rest in bfloat16."""

import torch

from gossamer.engine.gpu.captured import Captured
from gossamer.engine.gpu.layers import Report, pack_layers
from gossamer.models.adapter import read_adapter
from gossamer.models.open import Opened, open_packed

DTYPE = torch.bfloat16


def open_gpu(ref: str, device: torch.device) -> tuple[Opened, Captured, Report]:
    """The model `ref` on a device, what makes steppers of it, and what became of its layers.

    Raises what `open_model` does.
    """
    opened = open_packed(ref)
    low_ranks = read_adapter(opened.file) if opened.file is not None and opened.file.is_dir() else {}
    report = pack_layers(opened.model, low_ranks, DTYPE, device)
    return opened, Captured(opened.model), report
