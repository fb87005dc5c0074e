"""A model that computes with values made anew for some of its parameters, so that gradients reach what makes them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gossamer.models.hierarchy import Hierarchy


class StandIns:
    """`values` make, by the names of the parameters that they stand in for, tensors of the same shape and type.

    A shared parameter is replaced wherever it stands. Only one block's values are alive at a time, and while gradients
    are taken every block's input.
    """

    def __init__(self, model: nn.Module, hierarchy: Hierarchy, values: Mapping[str, Callable[[], Tensor]]) -> None:
        self._model = model
        self._values = values
        self._originals = {name: model.get_parameter(name) for name in values}
        self._places = _places(model, self._originals)
        self._blocks = {
            block.module: [name for name in values if name.startswith(f"{block.module}.")]
            for block in hierarchy.blocks()
        }
        inside = {name for found in self._blocks.values() for name in found}
        self._outside = [name for name in values if name not in inside]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside, the model computes with the present values; gradients are taken inside too.

        A block's values are made when it runs, and with its activations once more when gradients come back to it.
        """
        with ExitStack() as stack:
            stack.enter_context(self._substituted(self._outside))
            for path, names in self._blocks.items():
                block = self._model.get_submodule(path)
                block.__dict__["forward"] = partial(self._through, block.forward, names)
                stack.callback(block.__dict__.pop, "forward")
            yield

    def _through(self, forward: Any, names: Sequence[str], *args: Any, **kwargs: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            with self._substituted(names):
                return forward(*args, **kwargs)

        return checkpoint(run, *args, use_reentrant=False, **kwargs)

    @contextmanager
    def _substituted(self, names: Sequence[str]) -> Iterator[None]:
        try:
            for name in names:
                value: Any = self._values[name]()
                for parameters, key in self._places[name]:
                    parameters[key] = value
            yield
        finally:
            for name in names:
                for parameters, key in self._places[name]:
                    parameters[key] = self._originals[name]


_Place = tuple[dict[str, nn.Parameter | None], str]


def _places(model: nn.Module, wanted: Mapping[str, nn.Parameter]) -> dict[str, list[_Place]]:
    """Where each of these parameters stands: at several places if it is shared."""
    owners: dict[int, list[_Place]] = {}
    for module in model.modules():
        for key, parameter in module._parameters.items():
            owners.setdefault(id(parameter), []).append((module._parameters, key))
    return {name: owners[id(parameter)] for name, parameter in wanted.items()}
