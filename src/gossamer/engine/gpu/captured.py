"""The step of a token as one CUDA graph: hundreds of kernels are started as one, with no Python in between.

A graph computes at fixed addresses. So the past lies in a cache of fixed size, and everything that a step needs to know
(where its token goes, what is seen) is counted up on the GPU by the graph itself. Prompts, and what verifies drafts,
are read by the plain stepper on the same model; the past moves between the two where one takes over from the other.
"""

import inspect
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from gossamer.engine.forward import device_of
from gossamer.engine.stepping import Inputs, Stepper, bytes_of
from gossamer.models.reloading import logits_of

LEAST_CAPACITY = 256
"""Places of the smallest cache; others have twice, four times, … as many."""
MOST_RECORDINGS = 4
"""Recordings that are kept, each with its own cache."""
WARMING = 2
"""Steps before one is recorded: kernels are chosen and compiled in them."""


class Captured:
    """Makes steppers of a model that share its recorded steps."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._recordings: OrderedDict[tuple[int, ...], Recording] = OrderedDict()
        self.not_recorded = _not_recorded(model)
        """Why the model's code, its past aside, may not do the same at every step; None where it does."""

    def __call__(self, model: nn.Module) -> Stepper:
        """A stepper of the model. A twin with fewer of its blocks gets a plain one."""
        return CapturedStepper(model, self) if model is self._model else Stepper(model)

    def recording(self, past: Any, mask: Tensor, positions: Tensor) -> "Recording":
        """A recording with room for a good many more tokens, whose cache is nobody's."""
        wanted = mask.shape[1] + LEAST_CAPACITY // 4
        capacity = LEAST_CAPACITY << (wanted // LEAST_CAPACITY).bit_length()
        key = (len(mask), capacity, positions.ndim)
        found = self._recordings.pop(key, None)
        if found is None:
            while len(self._recordings) >= MOST_RECORDINGS:
                self._recordings.popitem(last=False)[1].free()
            found = Recording(self._model, past, positions, capacity)
        found.free()
        self._recordings[key] = found
        return found


class Recording:
    """One step for so many sequences and a cache of so many places, and the stepper whose past it holds."""

    def __init__(self, model: nn.Module, past: Any, positions: Tensor, capacity: int) -> None:
        from transformers.cache_utils import Cache, StaticLayer

        self._model: Any = model
        self._owner: Any = None
        self.capacity, self.length = capacity, 0
        device, batch = device_of(model), positions.shape[-2]
        layers = [StaticLayer(capacity) for _ in past.layers]
        for layer, like in zip(layers, past.layers, strict=True):
            layer.lazy_initialization(like.keys, like.values)
        self.cache: Any = Cache(layers=[*layers])
        self.mask = torch.zeros(batch, capacity, dtype=torch.bool, device=device)
        self.positions = torch.zeros(*positions.shape[:-1], capacity, dtype=torch.long, device=device)
        self._latest = torch.zeros(*positions.shape[:-1], 1, dtype=torch.long, device=device)
        self._place = torch.zeros(1, dtype=torch.long, device=device)
        self._given = torch.ones(2, batch, dtype=torch.long, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits = self._record() if device.type == "cuda" else torch.empty(0)

    def take(self, owner: "CapturedStepper", past: Any, mask: Tensor, positions: Tensor) -> None:
        """Holds a past from now on."""
        self.length = mask.shape[1]
        for mine, theirs in zip(self.cache.layers, past.layers, strict=True):
            mine.keys[:, :, : self.length] = theirs.keys
            mine.values[:, :, : self.length] = theirs.values
            mine.cumulative_length.fill_(self.length)
        self.mask.zero_()[:, : self.length] = mask.bool()
        self.positions[..., : self.length] = positions
        self._latest.copy_(positions[..., -1:])
        self._place.fill_(self.length)
        self._owner = ref(owner)

    def free(self) -> None:
        """Gives its past back to the stepper whose it is, if that is still there."""
        owner = self._owner() if self._owner is not None else None
        self._owner = None
        if owner is not None:
            owner.leave()

    def step(self, tokens: Sequence[int], moving: Sequence[bool]) -> Tensor:
        """Logits (sequences, vocabulary), float32, after one more token of each."""
        self._given.copy_(torch.tensor([tokens, moving], dtype=torch.long))
        self.length += 1
        if self._graph is None:
            return self._run()
        self._graph.replay()
        return self._logits.clone()

    def _run(self) -> Tensor:
        ids, moving = self._given
        self._latest += moving[:, None]
        self.positions.index_copy_(-1, self._place, self._latest)
        self.mask.index_fill_(-1, self._place, True)
        self._place += 1
        output = self._model(
            input_ids=ids[:, None], attention_mask=self.mask[:, None, None], position_ids=self._latest,
            past_key_values=self.cache, use_cache=True, return_dict=True,
        )  # fmt: skip
        return logits_of(output)[:, -1].float()

    def _record(self) -> Tensor:
        """Records the graph; the cache holds nothing of use yet."""
        aside: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARMING):
                self._run()
        torch.cuda.current_stream().wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            logits = self._run()
        return logits


class CapturedStepper(Stepper):
    """The plain stepper, whose single steps are replayed where the model allows it.

    That is where every block keeps all keys and values: windows and states are read plainly. So is everything after
    drafts were verified: whoever drafts does so at every step.
    """

    def __init__(self, model: nn.Module, recordings: Captured) -> None:
        super().__init__(model)
        self._recordings = recordings
        self._held: Recording | None = None
        self._drafted = False

    def prefill(self, prompts: Sequence[Inputs]) -> Tensor:
        """Reads the prompts. Returns logits (prompts, vocabulary) of the token after each, float32."""
        self._held = None
        return super().prefill(prompts)

    @property
    def cache_bytes(self) -> int:
        """Bytes of the keys and values, room ahead included."""
        held = self._held
        return (
            super().cache_bytes if held is None else bytes_of([[each.keys, each.values] for each in held.cache.layers])
        )

    def step(self, tokens: Sequence[int], moving: Sequence[bool]) -> Tensor:
        """Reads one token for each sequence. Returns logits (sequences, vocabulary) of the next, float32."""
        held = self._held
        if held is not None and held.length == held.capacity:
            self.leave()
            held = None
        if held is None:
            if not self._repeats():
                return super().step(tokens, moving)
            past = self._past["past_key_values"]
            held = self._recordings.recording(past, self._mask, self._positions)
            held.take(self, past, self._mask, self._positions)
            self._held, self._past = held, {}
        return held.step(tokens, moving)

    def extend(self, tokens: Tensor) -> Tensor:
        """Reads tokens (sequences, length) behind what each has read, see `Stepper`."""
        self._drafted = True
        self.leave()
        return super().extend(tokens)

    def rewind(self, count: int) -> None:
        """Forgets the latest `count` positions, see `Stepper`."""
        self._drafted = True
        self.leave()
        super().rewind(count)

    def select(self, rows: Sequence[int]) -> None:
        """The batch becomes these sequences, see `Stepper`."""
        self.leave()
        super().select(rows)

    def join(self, other: Stepper) -> None:
        """The sequences of another one come after these, see `Stepper`."""
        self.leave()
        if isinstance(other, CapturedStepper):
            other.leave()
        super().join(other)

    def leave(self) -> None:
        """Takes the past back from the recording that holds it."""
        held, self._held = self._held, None
        if held is None:
            return
        from transformers import DynamicCache

        cache = DynamicCache()
        for number, layer in enumerate(held.cache.layers):
            cache.update(layer.keys[:, :, : held.length].clone(), layer.values[:, :, : held.length].clone(), number)
        self._past = {"past_key_values": cache}
        self._mask = held.mask[:, : held.length].to(self._mask.dtype)
        self._positions = held.positions[..., : held.length].clone()
        held.free()

    def _repeats(self) -> bool:
        """Whether each step is the one before it, at other values."""
        from transformers.cache_utils import DynamicLayer

        if self._drafted or self._recordings.not_recorded is not None or len(self._past) != 1:
            return False
        layers = getattr(self._past.get("past_key_values"), "layers", None) or []
        return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def _not_recorded(model: Any) -> str | None:
    name = type(model).__name__
    known = inspect.signature(model.forward).parameters
    if getattr(model.config, "is_encoder_decoder", False) or "position_ids" not in known:
        return f"{name} is given no positions"
    text = model.config.get_text_config(decoder=True)
    if any(path.endswith("experts") for path, _ in model.named_modules()):
        return f"{name} has experts: which of them compute depends on the token, and torch asks on the processor"
    if not getattr(model.get_decoder(), "_can_compile_fullgraph", False):
        return f"transformers does not say that {name} does the same at every step"
    if getattr(text, "_attn_implementation", None) != "sdpa":  # others read a mask as numbers to add
        return f"{name} attends by {getattr(text, '_attn_implementation', None)}, not by sdpa"
    kinds = [getattr(part, "rope_type", "default") for part in model.modules()]
    kinds = [kind for each in kinds for kind in (each.values() if isinstance(each, Mapping) else [each])]
    lengthwise = {"dynamic", "longrope"} & set(kinds)
    return f"the rates of {name}'s positions ({min(lengthwise)}) depend on the length" if lengthwise else None
