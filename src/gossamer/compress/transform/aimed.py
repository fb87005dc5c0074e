"""What layers will be rounded to, while something is learnt for that."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from torch import nn

from gossamer.compress.passes import Aim
from gossamer.models.hierarchy import Layer
from gossamer.models.inputs import input_grid, round_inputs
from gossamer.models.packed import Scheme


def grids_of(layers: Iterable[Layer], aims: Mapping[str, Aim]) -> dict[Layer, Scheme]:
    """The grids of those layers that later passes round, and that are a parameter of their own (experts are not)."""
    known = {layer: aims[layer.path].weight for layer in layers if layer.path in aims}
    return {layer: grid for layer, grid in known.items() if grid and layer.on_grid and layer.index is None}


@contextmanager
def rounded_inputs(model: nn.Module, layers: Iterable[Layer], aims: Mapping[str, Aim]) -> Iterator[None]:
    """Inside, `layers` round their inputs as later passes will have them do."""
    with ExitStack() as stack:
        for layer in layers:
            aim = aims.get(layer.path)
            if aim is not None and aim.inputs is not None:
                module = model.get_submodule(layer.module)
                stack.callback(round_inputs, module, input_grid(module))
                round_inputs(module, aim.inputs)
        yield
