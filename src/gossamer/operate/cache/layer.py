"""One layer's keys and values of past tokens: as many rows as its budget allows, the older ones in few bits."""

from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from gossamer.core.errors import ModelError
from gossamer.operate.cache.attention import attention
from gossamer.operate.cache.packing import Packed
from gossamer.operate.cache.policy import Policy, kept_rows
from gossamer.operate.cache.rotation import Rotation


@dataclass(frozen=True)
class Rules:
    """What a layer keeps: `budget` rows by `policy` once there are `block` more (None: all); all but the latest
    `residual` in `bits`, `group` tokens at a time (None: as they come); whether rows move together (`rotation`)."""

    policy: Policy | None
    budget: int
    block: int
    bits: int | None
    group: int
    residual: int
    rotation: Rotation | None


class KeptLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """The cache of one layer for one sequence, after transformers' contract for such layers.

    A row is one token's key and value in one head; heads keep different tokens, in the order in which they were read.
    `keys` and `values` (1, heads, rows, channels) are the rows in full precision, which come after those in `packed`.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, rules: Rules) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rules = rules
        self.packed: Packed | None = None
        self.queries: Tensor | None = None
        self.tally: Tensor | None = None
        self.reached = 0
        """How many rows there were when the latest had come."""
        self.behind: Tensor | None = None
        """How far the rows (heads, rows) stand from the next token, if they are no longer one behind the other."""
        self._picked = 0
        """So many of the oldest rows are a choice of what was read: there is no way back into them."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Adds rows (1, heads, new, channels). Returns all that there are, in full precision."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if key_states.shape[0] != 1:
            raise ModelError("each sequence needs a cache of its own: give them to steppers apart")
        self.keys = torch.cat([self.keys, key_states], dim=-2)
        self.values = torch.cat([self.values, value_states], dim=-2)
        self.reached = self.get_seq_length()
        keys, values = self.whole()
        if self.rules.policy is None:
            self.pack()
        return keys, values

    def attended(
        self, query: Tensor, keys: Tensor, mask: Tensor | None, scaling: float | None, softcap: float | None
    ) -> None:
        """Is told the latest queries (1, heads, new, channels) and all `keys`; drops rows if there are too many."""
        policy = self.rules.policy
        if policy is None:
            return
        if policy.looks is None:
            self.tally = _grown(self.tally, keys.shape[2]) + _tally(policy, query, keys, mask, scaling, softcap)
        elif policy.looks:
            self.queries = query if self.queries is None else torch.cat([self.queries, query], 2)
        full = self.rules.budget + self.rules.block
        if self.reached >= full:
            tally = torch.zeros(keys.shape[1:3], device=keys.device) if self.tally is None else self.tally
            if policy.looks:
                tally = _tally(policy, _latest(self.queries, policy.looks), keys, None, scaling, softcap)
            first, latest = policy.reserved(self.rules.budget)
            self._keep(kept_rows(policy.score(tally), self.rules.budget, first, latest), latest)
        if policy.looks:  # those that will be among the latest when the layer is full again
            self.queries = _latest(self.queries, policy.looks - (full - self.get_seq_length())).clone()
        if self.rules.rotation is None:
            self.pack()

    def _keep(self, rows: Tensor, latest: int) -> None:
        """Keeps of each head the rows (heads, kept), in order, among them the `latest` of all heads."""
        keys, values = self.whole()
        at = rows[None, :, :, None]
        self.keys = keys.gather(2, at.expand(-1, -1, -1, keys.shape[-1]))
        self.values = values.gather(2, at.expand(-1, -1, -1, values.shape[-1]))
        self.packed, self._picked = None, rows.shape[1] - latest
        if self.tally is not None:
            self.tally = self.tally.gather(1, rows)
        if self.queries is not None:  # those whose own rows are still the latest
            self.queries = _latest(self.queries, latest)
        self.behind = None if self.rules.rotation is None else self.reached - rows

    def whole(self) -> tuple[Tensor, Tensor]:
        """Keys and values (1, heads, rows, channels) in full precision."""
        if self.packed is None:
            return self.keys, self.values
        keys, values = self.packed.whole(self.dtype)
        return torch.cat([keys, self.keys], 2), torch.cat([values, self.values], 2)

    def move(self, by: int) -> None:
        """Turns the keys so that rows stand one behind the other, the latest `by` positions before where it stood."""
        rotation = self.rules.rotation
        assert rotation is not None
        if by or self.behind is not None:
            keys, self.values = self.whole()
            heads, count = keys.shape[1:3]
            straight = torch.arange(count, 0, -1, device=keys.device).expand(heads, -1)
            self.keys = rotation.moved(keys, (straight if self.behind is None else self.behind) - straight - by)
            self.packed = self.behind = None
        if by and self.queries is not None and self.queries.shape[2]:
            ahead = torch.full(self.queries.shape[1:3], -by, device=self.queries.device)
            self.queries = rotation.moved(self.queries, ahead)
        self.pack()

    def pack(self) -> None:
        """Brings to few bits what is older than the residual window."""
        rules = self.rules
        old = 0 if rules.bits is None else max(0, self.keys.shape[2] - rules.residual) // rules.group * rules.group
        if not old or rules.bits is None:
            return
        fresh = Packed.of(self.keys[:, :, :old], self.values[:, :, :old], rules.bits, rules.group)
        self.packed = fresh if self.packed is None else self.packed.then(fresh)
        self.keys, self.values = self.keys[:, :, old:].clone(), self.values[:, :, old:].clone()

    def get_seq_length(self) -> int:
        """Rows, not tokens that were read: what masks are made for."""
        return super().get_seq_length() + (0 if self.packed is None else self.packed.rows)

    def can_forget(self, count: int) -> bool:
        """Whether the latest `count` rows are the latest tokens, none of them evicted, nor any right before them."""
        return self.get_seq_length() - count >= self._picked

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the latest -`tokens_to_remove` rows, which it must be able to."""
        count = -tokens_to_remove
        if not count or not self.is_initialized:
            return
        rows = self.get_seq_length() - count
        keys, values = self.whole()
        packed = 0 if self.packed is None else min(rows, self.packed.rows) // self.rules.group * self.rules.group
        self.keys, self.values = keys[:, :, packed:rows].clone(), values[:, :, packed:rows].clone()
        self.packed = self.packed.first(packed, self.rules.group) if self.packed is not None and packed else None
        self.tally = None if self.tally is None else self.tally[:, :rows]
        self.queries = None if self.queries is None else self.queries[:, :, :-count]


class KeptCache(DynamicCache):
    """A cache of transformers, some of whose layers are `KeptLayer`s."""

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the latest -`tokens_to_remove` tokens. Raises `ModelError`, and does nothing, where some of them, or
        of those before them, were evicted since they were read."""
        own = [layer for layer in self.layers if isinstance(layer, KeptLayer) and layer.is_initialized]
        if not all(layer.can_forget(-tokens_to_remove) for layer in own):
            raise ModelError(
                f"the cache cannot forget the latest {-tokens_to_remove} tokens: it has evicted some of them meanwhile"
            )
        super().crop(tokens_to_remove)


def _tally(policy: Policy, query: Any, keys: Tensor, *rest: Any) -> Tensor:
    return reduce(torch.add, (policy.tally(*seen) for seen in attention(query, keys, *rest)))


def _latest(queries: Any, count: int) -> Any:
    return queries[:, :, max(0, queries.shape[2] - max(0, count)) :]


def _grown(tally: Tensor | None, rows: int) -> Any:
    return 0 if tally is None else torch.nn.functional.pad(tally, (0, rows - tally.shape[1]))
