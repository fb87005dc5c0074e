"""Layers whose inputs are rounded too, as kernels that multiply low-bit numbers with each other want them.

The rounding itself is compressed-tensors' own, so that a checkpoint computes in transformers what it computes here.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gossamer.core.errors import ModelError
from gossamer.models.number_formats import E4M3_LARGEST, FLOATS, FORMATS, Format

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationArgs

SCALE_TYPES: dict[Format, str] = {"mxfp4": "torch.uint8", "nvfp4": "torch.float8_e4m3fn"}
"""The types of groups' scales, as compressed-tensors spells them."""


@dataclass(frozen=True)
class InputGrid:
    """How the inputs of a linear layer are rounded: to `bits` of a `format`, symmetrically.

    `int` and `fp8` have one scale for each token, found as it comes, or one `scale` for all. `mxfp4` and `nvfp4` have a
    scale for each group of a token; in `nvfp4` it is kept as an E4M3 number, the group's own scale times `scale`.
    """

    format: Format = "int"
    bits: int = 8
    scale: float | None = None

    @classmethod
    def spanning(cls, largest: float, form: Format, bits: int) -> "InputGrid":
        """The grid with one scale for all that keeps magnitudes up to `largest`."""
        top = FLOATS[form].largest if form != "int" else (2**bits - 1) / 2
        scale = top * E4M3_LARGEST / largest if form == "nvfp4" else largest / top
        return cls(form, bits, float(torch.tensor(scale)))

    def entry(self) -> dict[str, Any]:
        """compressed-tensors' description, as it stands under `input_activations` in `config.json`."""
        group = FLOATS[self.format].group if self.format != "int" else None
        found: dict[str, Any] = {
            "num_bits": self.bits,
            "type": "int" if self.format == "int" else "float",
            "symmetric": True,
            "strategy": "token" if self.scale is None else "tensor",
            "group_size": group,
            "dynamic": self.scale is None,
        }
        if group is not None:
            found |= {"strategy": "group", "scale_dtype": SCALE_TYPES[self.format]}
        if self.format == "nvfp4":
            found |= {"strategy": "tensor_group", "dynamic": "local"}
        return found

    def constants(self) -> dict[str, Tensor]:
        """What is stored beside the weight: `input_scale`, or `input_global_scale`, float32 (1,)."""
        name = "input_global_scale" if self.format == "nvfp4" else "input_scale"
        return {} if self.scale is None else {name: torch.tensor([self.scale])}


class _Rounding:
    """The hook in front of a layer's forward pass."""

    def __init__(self, grid: InputGrid) -> None:
        from compressed_tensors.quantization import QuantizationArgs

        self.grid = grid
        entry = {key: value for key, value in grid.entry().items() if value is not None}
        self._args: QuantizationArgs = QuantizationArgs(**entry)
        self._constants = grid.constants()

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (_Passing.apply(inputs[0], self), *inputs[1:])  # type: ignore[no-untyped-call]

    def rounded(self, values: Tensor) -> Tensor:
        from compressed_tensors.quantization.lifecycle.forward import fake_quantize
        from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

        if values.numel() == 0:
            return values
        known = {name: value.to(values.device) for name, value in self._constants.items()}
        whole = known.get("input_global_scale")
        if "input_scale" in known:
            scale, zero = known["input_scale"], torch.zeros(1)
        else:
            scale, zero = compute_dynamic_scales_and_zp(values, self._args, nn.Module(), global_scale=whole)
        return fake_quantize(values, scale, zero, self._args, global_scale=whole)


class _Passing(torch.autograd.Function):
    """Rounds, and lets gradients pass as if it had not."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, rounding: _Rounding) -> Tensor:
        return rounding.rounded(values)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        return slope, None


def round_inputs(module: nn.Module, grid: InputGrid | None) -> None:
    """From now on `module` computes with rounded inputs; `None` ends it."""
    for key, hook in list(module._forward_pre_hooks.items()):
        if isinstance(hook, _Rounding):
            del module._forward_pre_hooks[key]
    if grid is not None:
        module.register_forward_pre_hook(_Rounding(grid))


def input_grid(module: nn.Module) -> InputGrid | None:
    """How the inputs of `module` are rounded; None if they are not."""
    return next((hook.grid for hook in module._forward_pre_hooks.values() if isinstance(hook, _Rounding)), None)


def stored_input_grids(model: nn.Module) -> dict[str, InputGrid]:
    """Module name → how its inputs are rounded, in a model that transformers has loaded from compressed-tensors.

    Raises `ModelError` for ways of rounding that `InputGrid` does not describe.
    """
    found = {}
    for name, module in model.named_modules():
        args = getattr(getattr(module, "quantization_scheme", None), "input_activations", None)
        if args is not None:
            found[name] = _grid_of(name, module, args)
    return found


def _grid_of(name: str, module: nn.Module, args: "QuantizationArgs") -> InputGrid:
    said = args.model_dump(mode="json")
    for form in FORMATS:
        bits = args.num_bits if form == "int" else FLOATS[form].bits
        for scale in (1.0, None):
            grid = InputGrid(form, bits, scale)
            if all(said[key] == value for key, value in grid.entry().items()):
                constants = [float(getattr(module, constant)) for constant in grid.constants()]
                return replace(grid, scale=constants[0] if constants else None)
    raise ModelError(
        f"the inputs of {name} are rounded in a way that cannot be opened ({args.type} of {args.num_bits} bits by "
        f"{args.strategy}): whole numbers and fp8 by token or tensor, mxfp4 and nvfp4 can"
    )
