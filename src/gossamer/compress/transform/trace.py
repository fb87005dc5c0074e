"""Finding the bases of a model: one forward pass in which every tensor carries the axis that its channels lie on.

No family is known here. Operations fall into four kinds: those that only move values about (what they do to an axis is
read off by having them move the channels' numbers), sums (the terms share a basis), scalings by what is equal in all
channels (the basis stays), and products with a weight (which reads one basis and writes another). Norms are recognised
by what they compute and tie the bases before and after them. Whatever else touches a basis pins it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from gossamer.compress.transform.bases import Axis, Bases, Basis, NormUse, Use
from gossamer.compress.transform.norms import norm_of
from gossamer.compress.transform.operations import (
    BLIND,
    MIXES,
    MOVES,
    PRODUCTS,
    SAME,
    SCALES,
    SUMS,
    WRITES,
    channel_axis,
    same_layout,
    tensors,
)
from gossamer.compress.transform.trial import results
from gossamer.engine.forward import forward


def find_bases(model: nn.Module, inputs: Mapping[str, Any], doors: Iterable[str]) -> Bases:
    """The bases in `model`, which must not hold tied parameters, seen on one batch.

    `doors` are paths of modules whose first input is of interest.
    """
    trace = _Trace(model, set(doors))
    with torch.no_grad(), trace.watching(), trace:
        output = forward(model, inputs)
    trace.pin(results(output), "the model's output")
    norms = tuple(NormUse(path, trace.known[path], *bases) for path, bases in trace.norms.items())
    return Bases(tuple(trace.uses.values()), norms, trace.doors)


class _Trace(TorchFunctionMode):
    def __init__(self, model: nn.Module, doors: set[str]) -> None:
        super().__init__()
        self._model = model
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._axes: Any = WeakTensorKeyDictionary()
        self._lost: Any = WeakTensorKeyDictionary()
        self._places = [""]
        self._wanted = doors
        self._inside_norm = False
        self.known = {path: norm for path, module in model.named_modules() if (norm := norm_of(module)) is not None}
        self.uses: dict[tuple[str, int], Use] = {}
        self.norms: dict[str, tuple[Basis, Basis]] = {}
        self.doors: dict[str, Basis | None] = {}

    # ------------------------------------------------------------------------------------------------ modules

    def watching(self) -> ExitStack:
        """Hooks that tell in which module an operation happens, while the stack is open."""
        stack = ExitStack()
        for path, module in self._model.named_modules():
            stack.callback(module.register_forward_pre_hook(self._enter(path), with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(self._leave(path), with_kwargs=True).remove)
        return stack

    def _enter(self, path: str) -> Callable[..., None]:
        def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._places.append(path)
            if path in self._wanted:
                hidden = self._axis(next(tensors((args, kwargs))))
                self.doors[path] = None if hidden is None or hidden.dim != -1 else hidden.basis
            self._inside_norm = self._inside_norm or path in self.known

        return enter

    def _leave(self, path: str) -> Callable[..., None]:
        def leave(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            self._places.pop()
            if path in self.known:
                self._inside_norm = False
                self._norm(path, next(tensors((args, kwargs))), output)

        return leave

    def _norm(self, path: str, inputs: Tensor, output: Tensor) -> None:
        axis, size = self._axis(inputs), inputs.shape[-1]
        if axis is None or axis.dim != -1 or inputs in self._lost:
            self.pin([inputs], path)
            axis = Axis(-1, Basis(size, path))
        before = axis.basis
        after = Basis(size)
        if path in self.norms:
            self.norms[path][0].join(before, "")
            self.norms[path][1].join(after, "")
        self.norms.setdefault(path, (before, after))
        self._axes[output] = Axis(-1, after)
        bias = self.known[path].module._parameters.get("bias")
        if bias is not None:
            self._use(bias, -1, after, reads=False)

    # --------------------------------------------------------------------------------------------- operations

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if self._inside_norm or name in BLIND:
            return result
        if name in PRODUCTS:
            self._product(name, args, kwargs, result)
            return result
        if name not in WRITES and next(tensors(result), None) is None:
            return result
        for tensor in tensors((args, kwargs)):
            self._adopt(tensor)
        touched = [tensor for tensor in tensors((args, kwargs)) if self._axis(tensor) is not None]
        if not touched:
            return result
        if any(tensor in self._lost for tensor in touched):
            self.pin(touched, self._where(name))
        elif name in MIXES:
            self._mix(name, args, kwargs, result)
        elif name in SAME or (name == "__get__" and same_layout(args[0], result)):
            self._follow(args[0], result)
        elif name in MOVES or name in WRITES:
            self._move(func, touched, args, kwargs, args[0] if name in WRITES else result)
        elif name in SUMS:
            self._sum(name, touched, args, kwargs, result)
        elif name in SCALES:
            self._scale(name, touched, args, kwargs, result)
        else:
            self.pin(touched, self._where(name))
        return result

    def _product(self, name: str, args: Any, kwargs: Any, result: Tensor) -> None:
        """A weight reads the basis of its input and writes that of the result."""
        named = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
        inputs, weight, bias = named["input"], named["weight"], named.get("bias")
        parameter = weight if weight._base is None else weight._base  # one expert's matrix is a view of all
        if id(parameter) not in self._names or (bias is not None and id(bias) not in self._names):
            return self.pin([inputs, parameter], self._where(name))
        channels = -1 if name in ("linear", "embedding", "_grouped_mm") else 1 - weight.dim()
        rows, columns = (-1, -2) if name == "embedding" else (channels - 1, channels)
        if name == "_grouped_mm" and weight.stride(-1) == 1:
            rows, columns = columns, rows  # stored input-major; elsewhere it is handed over transposed
        written = Axis(channels, Basis(result.shape[channels]))
        self._axes[result] = written
        self._use(parameter, rows, written.basis, reads=False)
        if bias is not None:
            self._use(bias, -1, written.basis, reads=False)
        read = self._axis(inputs)
        if name == "embedding" or read is None:
            return None
        if read.dim != channels or parameter.shape[columns] != read.basis.size or inputs in self._lost:
            return self.pin([inputs, result], self._where(name))
        self._use(parameter, columns, read.basis, reads=True)
        return None

    def _mix(self, name: str, args: Any, kwargs: Any, result: Tensor) -> None:
        """Tokens are mixed: the last operand's vectors are summed with weights that the others give."""
        *others, values = (*args, *kwargs.values())[: 3 if name == "scaled_dot_product_attention" else 2]
        self.pin(others, self._where(name))
        axis = self._axis(values)
        if axis is not None and axis.dim == -1:
            self._axes[result] = Axis(-1, axis.basis)
        else:
            self.pin([values], self._where(name))

    def _follow(self, source: Tensor, result: Tensor) -> None:
        axis = self._axis(source)
        if axis is not None:
            self._axes[result] = axis

    def _move(self, func: Any, touched: list[Tensor], args: Any, kwargs: Any, result: Any) -> None:
        """Moves the channels' numbers as `func` moves the values, and sees where they come to lie."""
        place = self._where(func.__name__)
        bases: list[Basis] = []

        def numbers(value: Any) -> Any:
            if isinstance(value, Tensor):
                axis = self._axis(value)
                if axis is None:
                    blank = value.is_floating_point() and bool((value != 0).any())
                    return torch.full_like(value, torch.nan) if blank else value
                bases.append(axis.basis)
                count = torch.arange(1.0, value.shape[axis.dim] + 1)
                return count.reshape(-1, *[1] * (-1 - axis.dim)).expand(value.shape).contiguous()
            if isinstance(value, (list, tuple)):
                return type(value)(numbers(item) for item in value)
            return value

        moved_args = numbers(args)
        moving = torch.mean if func.__name__ == "sum" else func
        try:
            moved = moving(*moved_args, **{key: numbers(value) for key, value in kwargs.items()})
        except (RuntimeError, TypeError):
            return self.pin(touched, place)
        if func.__name__ in WRITES:
            moved = moved_args[0]
        for tensor, channel in zip(tensors(result), tensors(moved), strict=True):
            found = channel_axis(channel, min(basis.size for basis in bases))
            if found is None:
                self._axes[tensor] = self._lost[tensor] = Axis(-1, bases[0])
                self.pin(touched if len(bases) > 1 else [], place)
                continue
            dim, size = found
            parts = [basis.resized(size, place) for basis in bases]
            for part in parts[1:]:
                parts[0].join(part, place)
            self._axes[tensor] = Axis(dim, parts[0].resized(tensor.shape[dim], place))
        return None

    def _sum(self, name: str, touched: list[Tensor], args: Any, kwargs: Any, result: Tensor) -> None:
        axes = [axis for tensor in touched if (axis := self._axis(tensor)) is not None]
        number = any(isinstance(value, (int, float)) and value != 0 for value in args[:2] if name != "index_add_")
        others = [
            tensor
            for tensor in tensors((args, kwargs))
            if self._axis(tensor) is None and tensor.is_floating_point() and bool((tensor != 0).any())
        ]
        same = {(axis.dim, axis.basis.size) for axis in axes}
        if number or others or len(same) != 1:
            return self.pin(touched, self._where(name))
        for axis in axes[1:]:
            axes[0].basis.join(axis.basis, self._where(name))
        self._axes[result] = axes[0]
        return None

    def _scale(self, name: str, touched: list[Tensor], args: Any, kwargs: Any, result: Tensor) -> None:
        axis = self._axis(touched[0])
        assert axis is not None
        factors = [tensor for tensor in tensors((args, kwargs)) if tensor is not touched[0]]
        equal = all(tensor.dim() < -axis.dim or tensor.shape[axis.dim] == 1 for tensor in factors)
        if len(touched) > 1 or not equal or (name.lstrip("_")[:3] in ("div", "tru") and args[0] is not touched[0]):
            return self.pin(touched, self._where(name))
        self._axes[result] = axis
        return None

    # ------------------------------------------------------------------------------------------------ records

    def _axis(self, tensor: Tensor) -> Axis | None:
        axis: Axis | None = self._axes.get(tensor)
        return axis

    def _adopt(self, tensor: Tensor) -> None:
        """A parameter that is used as it is, such as a class token, writes a basis on its last axis."""
        if id(tensor) in self._names and tensor.dim() and tensor.shape[-1] > 1 and self._axis(tensor) is None:
            self._axes[tensor] = Axis(-1, Basis(tensor.shape[-1]))
            self._use(tensor, -1, self._axes[tensor].basis, reads=False)

    def _use(self, parameter: Tensor, dim: int, basis: Basis, reads: bool) -> None:
        name = self._names[id(parameter)]
        known = self.uses.get((name, dim))
        if known is not None:
            known.axis.basis.join(basis, self._where("a second use"))
        self.uses[name, dim] = Use(name, Axis(dim, basis), reads or (known is not None and known.reads))

    def pin(self, bound: Sequence[Tensor], reason: str) -> None:
        """The bases of these tensors cannot change."""
        for tensor in bound:
            axis = self._axis(tensor)
            if axis is not None:
                axis.basis.pin(reason)

    def _where(self, name: str) -> str:
        return f"{name} in {self._places[-1] or 'the model'}"
