"""A device that is not there: tensors on it keep their values on the processor, and may not meet the processor's.

So a machine without a GPU shows which tensors would be on the wrong side of one. Scalars may meet either side, and
tensors that index may be the processor's, as on a GPU.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "pretended"


class _Backend(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


_setup_privateuseone_for_python_backend(NAME, _Backend())
DEVICE = torch.device(NAME, 0)
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")


class Elsewhere(Tensor):
    """A tensor on the device; `inner` holds its values."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Elsewhere":
        return Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
            requires_grad=inner.requires_grad,
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner.detach()

    def __repr__(self) -> str:
        return f"Elsewhere({self.inner!r})"

    def tolist(self) -> Any:
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


class Pretending(TorchDispatchMode):
    """Inside, tensors can be made on the device and modules brought to it; shared parameters stay shared."""

    def __enter__(self) -> "Pretending":
        self._swapping = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.__future__.set_swap_module_params_on_conversion(self._swapping)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with self:  # in inference mode compound operators arrive whole
            parts = function.decompose(*args, **(kwargs or {}))
        return _run(function, args, kwargs or {}) if parts is NotImplemented else parts


def _run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = function._overloadpacket.__name__
    if name == "copy_":
        _inner(args[0]).copy_(_inner(args[1]))
        return args[0]
    leaves = tree_leaves((args, kwargs))
    there = any(isinstance(leaf, Elsewhere) for leaf in leaves)
    wanted = kwargs.get("device")
    goes = there if wanted is None else torch.device(wanted).type == NAME
    if name != "_to_copy":
        _check(name, leaves, there, goes)
    if not goes and not there:
        return function(*args, **kwargs)
    plain = {key: torch.device("cpu") if key == "device" else value for key, value in kwargs.items()}
    if name == "_to_copy":
        plain["device"] = torch.device("cpu")
    output = function(*tree_map(_inner, args), **tree_map(_inner, plain))
    if name in ("_local_scalar_dense", "equal"):
        return output
    wrapped = tree_map(lambda part: Elsewhere(part) if goes and isinstance(part, Tensor) else part, output)
    return return_and_correct_aliasing(function, args, kwargs, wrapped) if there and name != "_to_copy" else wrapped


def _check(name: str, leaves: list[Any], there: bool, goes: bool) -> None:
    """Raises `RuntimeError`, as a GPU would, for tensors and generators of the processor beside those elsewhere.

    In a backward pass torch ends Python instead, with no word of the error: its guard of such a device cannot unwind.
    """
    if (there or goes) and any(isinstance(leaf, torch.Generator) for leaf in leaves):
        raise RuntimeError(f"{name}: a generator of the processor cannot draw elsewhere")
    for leaf in leaves if there else ():
        here = isinstance(leaf, Tensor) and not isinstance(leaf, Elsewhere) and leaf.dim() > 0
        is_place = name in INDEXING and leaf is not leaves[0]
        if here and not (is_place and leaf.dtype in (torch.int64, torch.bool)):
            raise RuntimeError(f"{name}: a tensor {tuple(leaf.shape)} of the processor meets one elsewhere")


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, Elsewhere) else value


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    _inner(target).copy_(_inner(source))
    return target


def _empty(size: Any, *rest: Any, dtype: Any = None, layout: Any = None, device: Any = None, **others: Any) -> Tensor:
    make: Callable[..., Tensor] = torch.empty_strided if rest else torch.empty
    return Elsewhere(make(size, *rest, dtype=dtype, device="cpu"))


_LIBRARY = torch.library.Library("aten", "IMPL")
for _operator, _function in (("empty_strided", _empty), ("empty.memory_format", _empty), ("_copy_from", _copy_from)):
    _LIBRARY.impl(_operator, _function, "PrivateUse1")
