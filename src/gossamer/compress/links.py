"""Links inside a block: where one module's output channels arrive, unmixed, as other layers' input columns.

Scaling channel j of a producer (a norm's γ, rows of a matrix) by f and the columns that read it by 1/f leaves the
block's function as it is. Which columns read which channel is not looked up by the names of a family but found out: the
producer's channels are multiplied by powers of two that spell their numbers, and a linked column grows by the same
powers, to the bit, since powers of two commute with rounding. A link counts only if a trial with compensated factors
leaves the block's output.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.engine.walk import Entry, Walk, first_row
from gossamer.models.hierarchy import Block, Layer

_DIGIT_BITS = 5
TOLERANCE = 1e-5
"""Largest accepted change of the block's output in the trial, as a share of its largest value."""


@dataclass(frozen=True, eq=False)
class Link:
    """`producer` (dotted module path) writes what the `consumers` read.

    `sources` int64, (columns,) for each consumer: the producer's channel behind each column, -1 where none was seen to
    be (the column was 0 throughout). `channels` is how many the producer has.
    """

    producer: str
    consumers: tuple[Layer, ...]
    sources: tuple[Tensor, ...]
    channels: int

    def fold(self, model: nn.Module, factors: Tensor) -> None:
        """Divides the producer's channels by `factors` (channels,), multiplies the columns that read them, in place."""
        _scale(model.get_submodule(self.producer), 1 / factors)
        for consumer, source in zip(self.consumers, self.sources, strict=True):
            weight = model.get_parameter(consumer.tensor)
            with torch.no_grad():
                weight.mul_(columns_of(factors, source).to(weight))

    def shift(self, model: nn.Module, shifts: Tensor) -> None:
        """Takes `shifts` (channels,) off what the producer writes and adds what they made up to the consumers' biases,
        in place. All of them must have biases."""
        with torch.no_grad():
            for consumer, source in zip(self.consumers, self.sources, strict=True):
                weight = model.get_parameter(consumer.tensor)
                bias = model.get_parameter(f"{consumer.module}.bias")
                bias.add_(weight @ columns_of(shifts, source, 0.0).to(weight))
            model.get_parameter(f"{self.producer}.bias").sub_(shifts.to(weight))


def columns_of(factors: Tensor, source: Tensor, other: float = 1.0) -> Tensor:
    """The factor of each column, (columns,): its channel's, `other` where it has none."""
    source = source.to(factors.device)
    return torch.where(source >= 0, factors[source.clamp_min(0)], other)


def shiftable(model: nn.Module, walk: Walk, entry: Entry, link: Link) -> float:
    """How large the values that a link carries are (root mean square, on one batch), 0 where it cannot carry shifts.

    It can where both ends have biases and nothing between is but moves and means; a trial tells.
    """
    places = (link.producer, *(consumer.module for consumer in link.consumers))
    if any(model.get_submodule(place)._parameters.get("bias") is None for place in places):
        return 0.0
    inputs, output = _inputs(model, walk, entry, {consumer.path: consumer for consumer in link.consumers})
    size = max(float(values.float().square().mean().sqrt()) for values in inputs.values())
    shifts = torch.randn(link.channels, generator=torch.Generator().manual_seed(0)) * size
    return size if _holds(model, walk, entry, link, output, lambda: link.shift(model, shifts)) else 0.0


def find_links(model: nn.Module, walk: Walk, entry: Entry, block: Block) -> list[Link]:
    """All links between the parts of a block, seen on one batch at its door. Each layer reads at most one producer."""
    readers = {layer.path: layer for layer in block.layers if layer.kind == "linear" and not layer.transposed}
    before, output = _inputs(model, walk, entry, readers)
    found: list[Link] = []
    for name, module in model.get_submodule(block.module).named_modules(prefix=block.module):
        channels = _channels(module)
        free = {path: before[path] for path in before if all(readers[path] not in link.consumers for link in found)}
        if channels is None or not free:
            continue
        sources = _read(model, walk, entry, readers, module, channels, free)
        if sources:
            link = Link(name, tuple(readers[path] for path in sources), tuple(sources.values()), channels)
            if _holds(model, walk, entry, link, output, partial(_try, model, link)):
                found.append(link)
    return found


def moved(model: nn.Module, walk: Walk, entry: Entry, links: list[Link], old: Block, new: Block) -> list[Link] | None:
    """The links of one block at another one of the same build; None where they do not hold there."""
    by_name = {layer.module.removeprefix(new.module): layer for layer in new.layers}
    try:
        found = [
            Link(
                new.module + link.producer.removeprefix(old.module),
                tuple(by_name[layer.module.removeprefix(old.module)] for layer in link.consumers),
                link.sources,
                link.channels,
            )
            for link in links
        ]
        _, output = _inputs(model, walk, entry, {})
        same = all(_holds(model, walk, entry, link, output, partial(_try, model, link)) for link in found)
    except (KeyError, AttributeError, RuntimeError):
        return None
    return found if same else None


class LinkFinder:
    """Finds the links of one block after another, anew only where those found in its tower before do not hold.

    It sees them on the first of the rows of `inputs`, if rows can go by themselves.
    """

    def __init__(self, model: nn.Module, walk: Walk, inputs: dict[str, Any]) -> None:
        self._model = model
        self._walk = walk
        self._inputs = first_row(inputs)
        self._known: dict[str, tuple[Block, list[Link]]] = {}
        self._entry: Entry | None = None

    def at(self, number: int) -> tuple[list[Link], Entry]:
        """The links of the block of stage `number`, and the entry at its door that they were seen on.

        Stages are asked for in order; blocks before it may have changed, as long as the model's function stayed.
        """
        while self._entry is None or self._entry.stage < number:
            self._entry = (
                self._walk.start(self._inputs) if self._entry is None else self._walk.advance(self._entry, self._inputs)
            )
        entry, stage = self._entry, self._walk.stages[number]
        known = self._known.get(stage.root)
        links = moved(self._model, self._walk, entry, known[1], known[0], stage.block) if known else None
        if links is None:
            links = find_links(self._model, self._walk, entry, stage.block)
        self._known[stage.root] = (stage.block, links)
        return links, entry


def _channels(module: nn.Module) -> int | None:
    """The output channels of a module that ends in multiplying them (and adding a bias), None for other modules."""
    weight = module._parameters.get("weight")
    if weight is None or (weight.dim() == 2 and not isinstance(module, nn.Linear)) or weight.dim() > 2:
        return None
    return weight.shape[0]


def _scale(module: nn.Module, factors: Tensor) -> None:
    with torch.no_grad():
        for name in ("weight", "bias"):
            parameter = module._parameters.get(name)
            if parameter is not None:
                parameter.mul_(factors.to(parameter).reshape(-1, *[1] * (parameter.dim() - 1)))


@contextmanager
def _kept(module: nn.Module) -> Iterator[None]:
    """Whatever happens to the module's own parameters inside, their values are back afterwards."""
    values = {
        name: parameter.detach().clone() for name, parameter in module._parameters.items() if parameter is not None
    }
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in values.items():
                module._parameters[name].copy_(value)  # type: ignore[union-attr]


def _inputs(
    model: nn.Module, walk: Walk, entry: Entry, readers: Mapping[str, Layer]
) -> tuple[dict[str, Tensor], Tensor]:
    """The inputs (vectors, columns) of each reader in one run of the block, and the block's output."""
    seen: dict[str, Tensor] = {}

    def hook(path: str) -> Callable[..., None]:
        def keep(_module: nn.Module, args: tuple[Any, ...]) -> None:
            seen.setdefault(path, args[0].detach().reshape(-1, args[0].shape[-1]).clone())

        return keep

    with ExitStack() as stack:
        for path, layer in readers.items():
            module = model.get_submodule(layer.module)
            stack.callback(module.register_forward_pre_hook(hook(path)).remove)
        output = walk.through(entry)
    return seen, output[0] if isinstance(output, tuple) else output


def _read(
    model: nn.Module,
    walk: Walk,
    entry: Entry,
    readers: Mapping[str, Layer],
    module: nn.Module,
    channels: int,
    before: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Reader → the channel of `module` behind each of its columns, for the readers that read nothing else."""
    numbers = torch.arange(1, channels + 1)
    sources = {path: torch.zeros(inputs.shape[1], dtype=torch.int64) for path, inputs in before.items()}
    largest = {path: inputs.abs().argmax(0, keepdim=True) for path, inputs in before.items()}
    for shift in range(0, channels.bit_length(), _DIGIT_BITS):
        with _kept(module):
            _scale(module, 2.0 ** ((numbers >> shift) & (1 << _DIGIT_BITS) - 1))
            after, _ = _inputs(model, walk, entry, {path: readers[path] for path in sources})
        for path in list(sources):
            grown = after[path].gather(0, largest[path]) / before[path].gather(0, largest[path])
            digit = grown.log2().nan_to_num(0.0).round().clamp(0, 31)
            if torch.equal(after[path], before[path] * 2.0**digit):
                sources[path] += digit[0].cpu().long() << shift
            else:
                del sources[path]
        if not sources:
            return {}
    dead = {path: (before[path] == 0).all(0).cpu() for path in sources}
    linked = {path: source for path, source in sources.items() if bool((source > 0).any())}
    return {path: source - 1 for path, source in linked.items() if bool(((source > 0) | dead[path]).all())}


def _try(model: nn.Module, link: Link) -> None:
    link.fold(model, 2.0 ** torch.randint(-2, 3, (link.channels,), generator=torch.Generator().manual_seed(0)))


def _holds(model: nn.Module, walk: Walk, entry: Entry, link: Link, output: Tensor, change: Callable[[], None]) -> bool:
    """Whether a change of the link's ends leaves the block's output as it is. It is undone."""
    with ExitStack() as stack:
        for module in (link.producer, *(consumer.module for consumer in link.consumers)):
            stack.enter_context(_kept(model.get_submodule(module)))
        change()
        _, changed = _inputs(model, walk, entry, {})
    return float((changed - output).abs().max()) <= TOLERANCE * float(output.abs().max())
