"""Norms, recognised by what they compute: x / rms(x), or the same of x minus its mean, times a gain, plus a bias."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Norm:
    """A norm over the last dimension of its input. `centres` tells that the mean is taken off first.

    `offset` is 0 where the gain is the weight, 1 where it is 1 + the weight (Gemma).
    """

    module: nn.Module
    centres: bool
    offset: float

    @property
    def gain(self) -> Tensor:
        """float64 (channels,)."""
        weight: Tensor = self.module.get_parameter("weight").detach()
        return weight.double() + self.offset

    def clear(self) -> None:
        """Sets the gain to 1, and divides the bias by the gain that was."""
        bias = self.module._parameters.get("bias")
        with torch.no_grad():
            if bias is not None:
                bias.copy_(bias.double() / self.gain)
            self.module.get_parameter("weight").fill_(1 - self.offset)


def norm_of(module: nn.Module) -> Norm | None:
    """The norm that `module` is, None for anything else. It is found by trying."""
    names = {name for name, parameter in module._parameters.items() if parameter is not None}
    weight = module._parameters.get("weight")
    if weight is None or weight.dim() != 1 or names - {"weight", "bias"} or len(list(module.children())):
        return None
    channels = len(weight)
    inputs = torch.randn(8, channels, generator=torch.Generator().manual_seed(0)).to(weight) * 100 + 30
    try:
        with torch.no_grad():
            output = module(inputs)
    except Exception:  # whatever takes other arguments is no norm
        return None
    if not isinstance(output, Tensor) or output.shape != inputs.shape:
        return None
    bias = module._parameters.get("bias")
    output = output.double() - (0 if bias is None else bias.detach().double())
    for centres in (False, True):
        inner = inputs.double() - (inputs.double().mean(-1, keepdim=True) if centres else 0)
        unit = inner / inner.square().mean(-1, keepdim=True).sqrt()
        for offset in (0.0, 1.0):
            expected = unit * (weight.detach().double() + offset)
            if torch.allclose(output, expected, rtol=0.02, atol=0.005 * float(expected.abs().max())):
                return Norm(module, centres, offset)
    return None
