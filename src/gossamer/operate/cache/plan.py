"""How a model's keys and values are kept while it writes: which rows, in how many bits, at which positions."""

import inspect
import typing
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

from gossamer.core.errors import ModelError, SettingError
from gossamer.operate.cache.attention import seen_by
from gossamer.operate.cache.chance import Chance
from gossamer.operate.cache.h2o import H2O
from gossamer.operate.cache.policy import Policy
from gossamer.operate.cache.scissorhands import Scissorhands
from gossamer.operate.cache.snapkv import SnapKV
from gossamer.operate.cache.streaming import Streaming

POLICIES: dict[str, type[Policy]] = {
    "h2o": H2O,
    "snapkv": SnapKV,
    "scissorhands": Scissorhands,
    "streaming": Streaming,
    "chance": Chance,
}
"""The eviction policies by name. `full` evicts nothing."""

Positions = Literal["keep", "rerotate"]


@dataclass(frozen=True)
class KeyValues:
    """What is kept of the keys and values of past tokens, and how.

    `policy` chooses `budget` rows in each layer and head (None: nothing is evicted) as soon as there are `block` more,
    at once and not at every step. With `pyramid`, in [0, 1), lower layers get more and upper ones less, in equal steps
    from `1 + pyramid` to `1 - pyramid` budgets (PyramidKV, Cai et al. 2024, arXiv:2406.02069); the sum stays.
    `bits`, 8, 4 or 2: all but the latest `residual` rows are packed so (see `packing`), `group` tokens at a time.

    `positions`: with `keep`, rows keep their rotations and new tokens come at their true positions, so the context's
    end is the end. With `rerotate`, rows close up and new tokens come right behind them, so that a text may go on
    forever; keys are turned by the difference.

    Layers that look at a window only (sliding attention) or keep a state are as the model has them. Raises
    `SettingError` for a setting out of range, a budget that does not hold what the policy always keeps among them.
    """

    policy: Policy | None = None
    budget: int = 512
    block: int = 32
    pyramid: float = 0.0
    bits: int | None = None
    group: int = 32
    residual: int = 128
    positions: Positions = "keep"

    def __post_init__(self) -> None:
        ranges = {
            "budget": (self.budget >= 1, "1 or more rows"),
            "block": (self.block >= 1, "1 or more rows"),
            "pyramid": (0 <= self.pyramid < 1, "0 or more, below 1"),
            "bits": (self.bits in (None, 8, 4, 2), "8, 4 or 2"),
            "group": (self.group >= 1, "1 or more tokens"),
            "residual": (self.residual >= 0, "0 or more rows"),
            "positions": (self.positions in typing.get_args(Positions), " or ".join(typing.get_args(Positions))),
        }
        for name, (fits, accepted) in ranges.items():
            if not fits:
                raise SettingError(f"{name} {getattr(self, name)} is not possible: give {accepted}")
        if self.policy is None and self.positions == "rerotate":
            raise SettingError("positions rerotate needs a policy that evicts: without one nothing moves")

    def budgets(self, layers: int) -> list[int]:
        """Rows for each of so many layers, from the lowest up; their sum is `layers` budgets.

        Raises `SettingError` if the least does not hold what the policy always keeps.
        """
        steps = [1 - 2 * layer / (layers - 1) if layers > 1 else 0.0 for layer in range(layers)]
        ends = [round(self.budget * (layer + 1 + self.pyramid * sum(steps[: layer + 1]))) for layer in range(layers)]
        found = [end - start for start, end in zip([0, *ends], ends, strict=False)]
        for rows in found if self.policy is not None else ():
            first, latest = self.policy.reserved(rows)  # type: ignore[union-attr]
            if first + latest > rows or rows < 1:
                raise SettingError(
                    f"a budget of {rows} rows in a layer is too small: {type(self.policy).__name__} always keeps "
                    f"the first {first} and the latest {latest}"
                )
        return found

    @classmethod
    def parse(cls, text: str) -> "KeyValues":
        """From `NAME` or `NAME:SETTING=VALUE,…`, as `snapkv:budget=512,bits=8` (see `named`)."""
        name, _, rest = text.partition(":")
        parts = [part.partition("=") for part in filter(None, rest.split(","))]
        return cls.named(name, {key: value for key, _, value in parts}, "--kv")

    @classmethod
    def named(cls, name: str, settings: Mapping[str, Any], where: str) -> "KeyValues":
        """The policy of that name, `full` for none, with settings of this class and of its own.

        Raises `SettingError`, which says `where` they stand, for what is not known.
        """
        if name not in ("full", *POLICIES):
            raise SettingError(f"{where} {name!r} is not known: give {', '.join(['full', *POLICIES])}")
        kinds = [cls, POLICIES[name]] if name in POLICIES else [cls]
        types = {key: (kind, hint) for kind in kinds for key, hint in typing.get_type_hints(kind).items()}
        del types["policy"]
        given: dict[type, dict[str, Any]] = {kind: {} for kind in kinds}
        for key, value in settings.items():
            if key not in types:
                raise SettingError(f"{where} {name} has no setting {key!r}: it takes {', '.join(types)}")
            kind, hint = types[key]
            given[kind][key] = _read(f"{where} {key}", str(value), hint)
        if name == "full":
            evicting = [key for key in ("budget", "block", "pyramid") if key in given[cls]]
            if evicting:
                raise SettingError(
                    f"{where} full evicts nothing, so it has no {evicting[0]}: it takes bits, group, residual"
                )
            return cls(**given[cls])
        return cls(policy=POLICIES[name](**given[POLICIES[name]]), **given[cls])

    @property
    def described(self) -> dict[str, Any]:
        """The settings as plain values, the policy by its name."""
        names = {kind: name for name, kind in POLICIES.items()}
        policy = {"name": "full"} if self.policy is None else {"name": names[type(self.policy)], **vars(self.policy)}
        return {**vars(self), "policy": policy}

    def piece(self, model: Any, context: int | None) -> int | None:
        """How many tokens of a long prompt may be read at once so that no position goes past the model's `context`;
        None where positions only grow. Raises `SettingError` if the context has no room beside the rows kept."""
        if self.positions == "keep" or context is None:
            return None
        room = context - max(self.budgets(_depth(model))) - self.block
        if room < 1:
            raise SettingError(
                f"budget {self.budget} and block {self.block} leave no room in the model's context of {context}: "
                "give less"
            )
        return room

    def new_past(self, model: Any) -> Any:
        """An empty cache of transformers for one sequence. Raises `ModelError` for a model that keeps no keys and
        values that could be evicted or packed, `SettingError` for a budget that is too small."""
        from transformers.cache_utils import DummyLayer, DynamicLayer

        from gossamer.operate.cache.layer import KeptCache, KeptLayer, Rules
        from gossamer.operate.cache.rotation import Rotation

        name = type(model).__name__
        _check_serves(model, evicts=self.policy is not None)
        past = KeptCache(config=model.config)
        own = [at for at, layer in enumerate(past.layers) if type(layer) is DynamicLayer]
        if not own:
            raise ModelError(
                f"{name} keeps a window or a state of fixed size in every layer: there is nothing to evict or pack"
            )
        if any(isinstance(layer, DummyLayer) for layer in past.layers):
            raise ModelError(f"{name} shares keys and values between layers: they are kept as they are (--kv full)")
        turns = self.positions == "rerotate"
        if turns and len(own) < len(past.layers):
            raise ModelError(f"{name} has layers of other kinds, whose rows cannot move: use positions=keep")
        rotation = Rotation(model) if turns else None
        for at, budget in zip(own, self.budgets(len(own)), strict=True):
            rules = Rules(self.policy, budget, self.block, self.bits, self.group, self.residual, rotation)
            past.layers[at] = KeptLayer(rules)
        return past

    def reading(self, model: Any, past_key_values: Any) -> AbstractContextManager[None]:
        """To be entered for each forward pass of the model with a past from `new_past`."""
        return nullcontext() if self.policy is None else seen_by(past_key_values, model)

    def settle(self, past_key_values: Any) -> int:
        """Is called after each pass: closes gaps where rows move. Returns by how many positions all went back."""
        from gossamer.operate.cache.layer import KeptLayer

        own = [layer for layer in past_key_values.layers if isinstance(layer, KeptLayer)]
        if self.policy is not None and any(layer.get_seq_length() >= layer.rules.budget + self.block for layer in own):
            raise ModelError("the model attends by code of its own, so what it looks at is not seen: use --kv full")
        if self.positions == "keep":
            return 0
        back = max(layer.reached for layer in own) - max(layer.get_seq_length() for layer in own)
        for layer in own:
            layer.move(back)
        return back


def _depth(model: Any) -> int:
    return int(model.config.get_text_config(decoder=True).num_hidden_layers)


def _check_serves(model: Any, evicts: bool) -> None:
    name, known = type(model).__name__, inspect.signature(model.forward).parameters
    if getattr(model.config, "is_encoder_decoder", False):
        raise ModelError(f"{name} reads its encoder's output whole at every step: of that nothing is evicted or packed")
    if "past_key_values" not in known:
        raise ModelError(f"{name} keeps a state of fixed size, no keys and values: there is nothing to evict or pack")
    if evicts and "position_ids" not in known:
        raise ModelError(f"{name} counts positions by what is in the cache: evicting would move all tokens")


def _read(what: str, value: str, hint: Any) -> Any:
    options = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return value
    kind = next(option for option in (*options, hint) if option in (int, float))
    try:
        return kind(value)
    except ValueError:
        expected = "a whole number" if kind is int else "a number"
        raise SettingError(f"{what}={value!r} is not possible: give {expected}") from None
