"""A batch of sequences inside a model: its prompts read at once, then one token for each at every step.

The model's own code computes: `prepare_inputs_for_generation` says what a family wants to be given, and the past is
whatever the model's forward pass makes (key–value caches, the states of Mamba and RWKV) and is handed back to it.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gossamer.core.errors import DataError, ModelError
from gossamer.engine.forward import device_of, floats_of, placed
from gossamer.engine.pasts import drop_oldest, join_rows, take_rows
from gossamer.models.reloading import logits_of

Inputs = Mapping[str, Tensor]
"""The model's keyword arguments for one prompt, as a processor gives them: `input_ids` (1, length) and what belongs to
it, images and their sizes; of encoder–decoder models the encoder's inputs and `decoder_input_ids`."""

_PASTS = ("past_key_values", "cache_params", "state")
_TOKENWISE = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


class Keeper(Protocol):
    """How keys and values of past tokens are kept, where not simply all. Each sequence has a past of its own."""

    @property
    def described(self) -> dict[str, Any]:
        """The settings as plain values."""

    def new_past(self, model: Any) -> Any:
        """An empty cache of transformers for one sequence. Raises `ModelError` for a model that this is not for."""

    def reading(self, model: Any, past_key_values: Any) -> AbstractContextManager[None]:
        """Is entered for each forward pass."""

    def settle(self, past_key_values: Any) -> int:
        """Is called after each pass. Returns by how many positions all that is past went back."""

    def piece(self, model: Any, context: int | None) -> int | None:
        """How many tokens of a prompt longer than the context may be read at once; None: there is no such prompt, the
        context's end is the end."""


class Steps(Protocol):
    """The model's side of decoding, whatever runs it: a batch of sequences, each with a past."""

    @property
    def endless(self) -> bool:
        """Whether a text may go on past the model's context."""

    @property
    def cache_bytes(self) -> int:
        """Bytes of what is kept of past tokens."""

    def prefill(self, prompts: Sequence[Inputs]) -> Tensor:
        """Reads the prompts. Returns logits (prompts, vocabulary) of the token after each, float32."""

    def step(self, tokens: Sequence[int], moving: Sequence[bool]) -> Tensor:
        """Reads one token for each sequence. Returns logits (sequences, vocabulary) of the next, float32. Sequences
        that are not `moving` have ended: what stands in their rows is of no use."""

    def extend(self, tokens: Tensor) -> Tensor:
        """Reads tokens (sequences, length) behind what each has read. Returns logits (sequences, length, vocabulary)
        after each, float32."""

    def rewind(self, count: int) -> None:
        """Forgets the latest `count` positions of every sequence. Raises `ModelError` where that cannot be."""

    def select(self, rows: Sequence[int]) -> None:
        """The batch becomes these sequences; one may come again (a fork), or not at all."""

    def join(self, other: Any) -> None:
        """The sequences of another one of the same kind, prefilled apart, come after these."""


StepperOf = Callable[[nn.Module], Steps]
"""What makes the side of a model that decoding needs."""


class Stepper:
    """Steps through transformers' own code, in torch."""

    def __init__(self, model: nn.Module, keeper: Keeper | None = None) -> None:
        self._model: Any = model
        self._keeper = keeper
        self._known = set(inspect.signature(model.forward).parameters)
        self._encodes = bool(getattr(self._model.config, "is_encoder_decoder", False))
        self._prefix = "decoder_" if self._encodes else ""
        # transformers' RWKV knows no padding, and mixes up the sequences of a batch when each has one token
        self._separate = "state" in self._known or keeper is not None
        self._apart: list[Stepper] = []
        self._past: dict[str, Any] = {}
        self._constant: dict[str, Any] = {}
        self._mask = self._positions = torch.empty(0)

    def prefill(self, prompts: Sequence[Inputs]) -> Tensor:
        """Reads the prompts. Returns logits (prompts, vocabulary) of the token after each, float32."""
        if self._separate and len(prompts) > 1:
            self._apart = [Stepper(self._model, self._keeper) for _ in prompts]
            return torch.cat([one.prefill([prompt]) for one, prompt in zip(self._apart, prompts, strict=True)])
        inputs = placed(collate(prompts, pad_of(self._model)), device_of(self._model), floats_of(self._model))
        if self._encodes:
            encoder = self._model.get_encoder()
            wanted = set(inspect.signature(encoder.forward).parameters)
            encoded = encoder(**{name: value for name, value in inputs.items() if name in wanted}, return_dict=True)
            self._constant = {"encoder_outputs": encoded}
            inputs = {name: value for name, value in inputs.items() if name.startswith(self._prefix)}
        ids = inputs.pop(f"{self._prefix}input_ids")
        self._mask = inputs.pop(f"{self._prefix}attention_mask")
        self._positions = self._first_positions(ids, inputs)
        extra = {name: value for name, value in inputs.items() if name in self._known}
        if self._keeper is not None:
            self._past = {"past_key_values": self._keeper.new_past(self._model)}
            return self._prefill_kept(ids, extra, self._keeper)
        return self._run(ids, extra, first=True)[:, -1]

    def _prefill_kept(self, ids: Tensor, extra: Mapping[str, Any], keeper: Keeper) -> Tensor:
        if not bool(self._mask.all()):
            raise DataError("a prompt with padding cannot be read with --kv: leave out what its attention_mask hides")
        context = context_of(self._model)
        piece = keeper.piece(self._model, context)
        if piece is None or context is None or ids.shape[1] <= context:
            return self._run(ids, extra, first=True)[:, -1]
        if extra:
            raise DataError(
                f"the prompt has {ids.shape[1]} tokens, and the model's context holds {context}: with images it cannot "
                "be read in pieces, shorten it"
            )
        parts = torch.split(ids, piece, 1)
        self._mask, self._positions = self._mask[:, :piece], self._positions[:, :piece]
        logits = self._run(parts[0], {}, first=True)
        for part in parts[1:]:
            logits = self._read(part, self._positions[:, -1:] + torch.arange(1, part.shape[1] + 1, device=ids.device))
        return logits[:, -1]

    @property
    def endless(self) -> bool:
        """Whether a text may go on past the model's context."""
        return self._keeper is not None and self._keeper.piece(self._model, context_of(self._model)) is not None

    @property
    def cache_bytes(self) -> int:
        """Bytes of all tensors that are kept from one pass to the next."""
        return sum(one.cache_bytes for one in self._apart) + bytes_of(self._past)

    def step(self, tokens: Sequence[int], moving: Sequence[bool]) -> Tensor:
        """Reads one token for each sequence. Returns logits (sequences, vocabulary) of the next, float32.

        Sequences that are not `moving` have ended: they ride along, their position no longer grows past the context.
        """
        if self._apart:
            alone = zip(self._apart, tokens, moving, strict=True)
            return torch.cat([one.step([token], [moves]) for one, token, moves in alone])
        ids = torch.tensor(tokens, device=self._mask.device)[:, None]
        going = torch.tensor(moving, device=self._mask.device)[:, None]
        return self._read(ids, self._positions[..., -1:] + going)[:, -1]

    def extend(self, tokens: Tensor) -> Tensor:
        """Reads `tokens` (sequences, length) after each sequence, which `rewind` can forget again.

        Returns logits (sequences, length, vocabulary) of the token after each of them, float32.
        """
        if self._apart:
            return torch.cat([one.extend(row[None]) for one, row in zip(self._apart, tokens, strict=True)])
        tokens = tokens.to(self._mask.device)
        cache = self._cache()
        if cache is None:  # a state of fixed size goes on token by token
            return torch.stack([self.step(column, [True] * len(column)) for column in tokens.T.tolist()], 1)
        cache.activate_past_recording()  # else a sliding window forgets what it needs after a rewind
        ahead = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
        return self._read(tokens, self._positions[..., -1:] + ahead, keep=0)

    def rewind(self, count: int) -> None:
        """Forgets the latest `count` positions of every sequence, as if they had not been read.

        Raises `ModelError` for models whose past is a state that has no way back, and for a sliding window that no
        longer holds what came before these positions: it does for those that `extend` read since the last rewind.
        """
        if self._apart:
            for one in self._apart:
                one.rewind(count)
            return
        cache = self._cache()
        if cache is None:
            raise ModelError(f"{type(self._model).__name__} keeps a state, not its past: it cannot go back")
        length = self._mask.shape[1] - count
        if not 0 <= count < self._mask.shape[1]:
            raise ValueError(f"cannot forget {count} of {self._mask.shape[1]} positions")
        for layer in (layer for layer in cache.layers if getattr(layer, "is_sliding", False) and layer.is_initialized):
            window = layer.sliding_window
            if layer.keys.shape[-2] - count < min(length, window - 1):
                raise ModelError(f"a window of {window} tokens no longer holds what came {count} tokens ago")
        cache.activate_past_recording()
        cache.crop(-count)
        self._mask, self._positions = self._mask[:, :length], self._positions[..., :length]

    def _cache(self) -> Any:
        """The keys and values of past tokens, if that is all that the model remembers, else None."""
        past = self._past.get("past_key_values")
        cache = getattr(past, "self_attention_cache", past)
        return cache if len(self._past) == 1 and getattr(cache, "is_croppable", False) else None

    def select(self, rows: Sequence[int]) -> None:
        """The batch becomes the sequences at these places, at least one; a place may be repeated: the sequence forks.

        Columns where only those had tokens that have left are given up.
        """
        if self._separate:
            alone = self._alone()
            self._apart, self._past = [alone[row]._forked() for row in rows], {}
            return
        taken = torch.tensor(rows, device=self._mask.device)
        self._past = {name: take_rows(past, rows) for name, past in self._past.items()}
        for encoded in self._constant.values():
            for name, value in encoded.items():
                encoded[name] = value[taken]
        mask = self._mask[taken]
        empty = int((mask.cumsum(-1).amax(0) == 0).sum())
        self._mask = mask[:, empty:]
        self._positions = self._positions.index_select(-2, taken)[..., empty:]
        if empty:
            for past in self._past.values():
                drop_oldest(past, empty)

    def join(self, other: "Stepper") -> None:
        """The sequences of another stepper of this model come after this one's; the other is used up.

        Raises `ModelError` for a model whose past cannot be joined, or encoder inputs of different sizes.
        """
        if self._separate:
            self._apart, self._past = [*self._alone(), *other._alone()], {}
            return
        for name, encoded in self._constant.items():
            for part, value in encoded.items():
                more = other._constant[name][part]
                if value.shape[1:] != more.shape[1:]:
                    raise ModelError(
                        f"encoder inputs of sizes {tuple(value.shape)} and {tuple(more.shape)} cannot join"
                    )
                encoded[part] = torch.cat([value, more])
        self._past = {name: join_rows(past, other._past[name]) for name, past in self._past.items()}
        width = max(self._mask.shape[1], other._mask.shape[1])
        masks, positions = (
            [nn.functional.pad(each, (width - each.shape[-1], 0)) for each in pair]
            for pair in ((self._mask, other._mask), (self._positions, other._positions))
        )
        self._mask = torch.cat(masks)
        if positions[0].ndim != positions[1].ndim:  # text beside images: without them rows and columns count as time
            positions = [each.expand(4, -1, -1) if each.ndim == 2 else each for each in positions]
        self._positions = torch.cat(positions, -2)

    def _alone(self) -> "list[Stepper]":
        return self._apart or [self._forked()]

    def _forked(self) -> "Stepper":
        twin = copy.copy(self)
        twin._past = copy.deepcopy(self._past)
        return twin

    def _read(self, ids: Tensor, positions: Tensor, keep: int = 1) -> Tensor:
        self._mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1]).expand(ids.shape)], 1)
        self._positions = torch.cat([self._positions, positions], -1)
        return self._run(ids, {}, first=False, keep=keep)

    def _run(self, ids: Tensor, extra: Mapping[str, Any], first: bool, keep: int = 1) -> Tensor:
        """Logits (sequences, `keep` latest or all if 0, vocabulary)."""
        given: dict[str, Any] = {
            f"{self._prefix}attention_mask": self._mask,
            f"{self._prefix}position_ids": self._positions[..., -ids.shape[1] :],
        }
        given = {name: value for name, value in given.items() if name in self._known}
        if "logits_to_keep" in self._known:
            given |= {"logits_to_keep": keep}
        ready = self._model.prepare_inputs_for_generation(
            ids, is_first_iteration=first, use_cache=True, **self._past, **self._constant, **given, **extra
        )
        keeping = nullcontext() if self._keeper is None else self._keeper.reading(self._model, **self._past)
        with keeping, attention_without_plans(ids.device):
            output = self._model(**ready, return_dict=True)
        self._past = {name: output[name] for name in _PASTS if output.get(name) is not None}
        if not self._past:
            raise ModelError(f"{type(self._model).__name__} keeps no past: it cannot write token after token")
        if self._keeper is not None:
            self._positions = self._positions - self._keeper.settle(**self._past)
        return logits_of(output)[:, -keep:].float()

    def _first_positions(self, ids: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """(prompts, length) from 0 at each first token. Where images count in rows and columns (M-RoPE) the model's own
        index, (4, prompts, length): plain positions first, then time, height and width."""
        plain = (self._mask.cumsum(-1) - 1).clamp(min=0)
        index = getattr(self._model.base_model, "get_rope_index", None)
        if index is None or "mm_token_type_ids" not in inputs or not {"image_grid_thw", "video_grid_thw"} & set(inputs):
            return plain
        wanted = set(inspect.signature(index).parameters) - {"input_ids", "attention_mask"}
        known = {name: value for name, value in inputs.items() if name in wanted}
        return torch.cat([plain[None], index(ids, attention_mask=self._mask, **known)[0]])


def collate(prompts: Sequence[Inputs], pad: int) -> dict[str, Tensor]:
    """Inputs of several prompts as one batch.

    What has an entry for each token is padded on the left, ids with `pad` and all else with 0, so that all prompts end
    where the first new token goes. Everything else is joined prompt by prompt, filled up with zeros behind where sizes
    differ (tiles of images).
    """
    joined: dict[str, Tensor] = {}
    for prefix in ("", "decoder_"):
        if any(f"{prefix}input_ids" in prompt for prompt in prompts):
            joined |= _padded(prompts, prefix, pad)
    rest = dict.fromkeys(name for prompt in prompts for name in prompt if name not in joined)
    for name in rest:
        parts = [prompt[name] for prompt in prompts if name in prompt]
        size = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
        joined[name] = torch.cat([_filled(part, size) for part in parts])
    return joined


def _padded(prompts: Sequence[Inputs], prefix: str, pad: int) -> dict[str, Tensor]:
    lengths = [prompt[f"{prefix}input_ids"].shape[1] for prompt in prompts]
    found: dict[str, Tensor] = {}
    for name in (prefix + kind for kind in _TOKENWISE):
        is_mask = name == f"{prefix}attention_mask"
        if not is_mask and not any(name in prompt for prompt in prompts):
            continue
        missing = 1 if is_mask else 0
        fill = pad if name == f"{prefix}input_ids" else 0
        rows = []
        for prompt, length in zip(prompts, lengths, strict=True):
            row = prompt.get(name)
            row = torch.full((1, length), missing) if row is None else row
            rows.append(nn.functional.pad(row, (max(lengths) - length, 0), value=fill))
        found[name] = torch.cat(rows)
    return found


def _filled(part: Tensor, size: Sequence[int]) -> Tensor:
    behind = [entry for want, have in zip(size, part.shape[1:], strict=True) for entry in (want - have, 0)]
    return nn.functional.pad(part, behind[::-1])


def attention_without_plans(device: torch.device) -> AbstractContextManager[None]:
    """On a GPU keeps torch's attention off cuDNN, which plans anew for every length of the past: tens of milliseconds
    for each token where the past grows by it."""
    if device.type != "cuda":
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


def pad_of(model: Any) -> int:
    """The id that stands where there is no token; 0 for models that name none, as it is never looked at."""
    return max(0, getattr(model.config.get_text_config(decoder=True), "pad_token_id", None) or 0)


def context_of(model: Any) -> int | None:
    """How many tokens prompt and answer may have together; None where a state of fixed size holds any number."""
    text = model.config.get_text_config(decoder=True)
    for name in ("max_target_positions", "max_position_embeddings"):
        if isinstance(getattr(text, name, None), int):
            return int(getattr(text, name))
    return None


def bytes_of(held: Any) -> int:
    """Bytes of the storages of all tensors in lists, dictionaries and objects, each counted once."""
    return sum({storage.data_ptr(): storage.nbytes() for storage in _storages(held)}.values())


def _storages(held: Any) -> Iterator[torch.UntypedStorage]:
    if isinstance(held, Tensor):
        yield held.untyped_storage()
    elif isinstance(held, Mapping):
        for part in held.values():
            yield from _storages(part)
    elif isinstance(held, (list, tuple)):
        for part in held:
            yield from _storages(part)
    elif hasattr(held, "__dict__") and not isinstance(held, type):
        yield from _storages(vars(held))
