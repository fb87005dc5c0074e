"""The turns of one conversation: what a prompt shares with what has been read is not read again."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.core.errors import ModelError
from gossamer.engine.forward import device_of, placed
from gossamer.engine.stepping import Inputs, Keeper, Stepper
from gossamer.operate.cache.features import ImageFeatures

TOKENWISE = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
OF_IMAGES = ("pixel_values", "pixel_attention_mask", "image_sizes", "image_grid_thw")


class Conversation(Stepper):
    """A stepper of one sequence whose `prefill` goes on from what it has read where the new prompt begins alike.

    The past serves up to the first token that differs, exactly compared; images before it must be the same, bit by bit.
    What is new is then read as it would be anew, up to the rounding of sums that are split in another way. Read anew is
    the whole prompt of models that cannot go back to the common part (a state, a window that has moved on) or whose
    early tokens see later ones, and of encoder–decoder models. `reused` says how many tokens of the latest prompt were
    not read again. With a `keeper` that evicts, a turn goes on with what earlier turns have kept.
    """

    def __init__(self, model: nn.Module, keeper: Keeper | None = None, features: ImageFeatures | None = None) -> None:
        super().__init__(model, keeper)
        self._features = ImageFeatures() if features is None else features
        self._ids = torch.empty(1, 0, dtype=torch.long)
        self._images: dict[str, Tensor] = {}
        self.reused = 0

    def prefill(self, prompts: Sequence[Inputs]) -> Tensor:
        """Reads what is new in the prompt, of which there is one. Returns logits (1, vocabulary) of the token after."""
        if len(prompts) != 1:
            raise ModelError(f"a conversation is one sequence, not {len(prompts)}: give each its own")
        prompt = placed(prompts[0], device_of(self._model))
        with self._features.reused(self._model):
            common, images = self._shared(prompt)
            fresh = _after(prompt, images)
            self.reused = common if common and self._returns(common, bool(fresh)) else 0
            self._images = {name: value for name, value in prompt.items() if name in OF_IMAGES}
            if self.reused:
                return self._continue(prompt, common, fresh)
            self._ids, self._past = self._ids[:, :0], {}
            return super().prefill([prompt])

    def _returns(self, length: int, sees: bool) -> bool:
        """Goes back to the first `length` tokens, if the model can, and can go on from there, with images if `sees`."""
        if self._past and self._cache() is None and sees:
            return False  # a state goes on token by token
        if length == self._ids.shape[1]:
            return True
        try:
            self.rewind(self._ids.shape[1] - length)
        except ModelError:
            return False
        return True

    def rewind(self, count: int) -> None:
        """See `Stepper`."""
        super().rewind(count)
        self._ids = self._ids[:, : self._ids.shape[1] - count]

    def _run(self, ids: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        read, self._ids = self._ids, self._ids[:, :0]  # after a pass that fails, the next prompt is read anew
        logits = super()._run(ids, *args, **kwargs)
        self._ids = torch.cat([read.to(ids.device), ids], 1)
        return logits

    def _shared(self, prompt: Inputs) -> tuple[int, int]:
        """How many tokens of the prompt the past serves for, and how many of its images these hold."""
        text, token = self._model.config.get_text_config(decoder=True), image_token(self._model.config)
        known = {*TOKENWISE, *OF_IMAGES} if token >= 0 else {*TOKENWISE}
        hidden = "attention_mask" in prompt and not bool(prompt["attention_mask"].all())
        looks_ahead = bool(getattr(text, "use_bidirectional_attention", None))
        if self._encodes or hidden or looks_ahead or prompt.keys() - known or not self._ids.shape[1]:
            return 0, 0
        ids, read = prompt["input_ids"][0], self._ids[0].to(prompt["input_ids"].device)
        length = min(len(ids) - 1, len(read))
        common = int((ids[:length] == read[:length]).long().cumprod(0).sum())
        places = ids == token
        before = _count(self._images)
        if bool(places[:common].sum() == (read == token).sum()) and _begins_with(prompt, self._images, before):
            return common, before
        return (min(common, int(places.long().argmax())) if bool(places.any()) else common), 0

    def _continue(self, prompt: Inputs, common: int, fresh: Mapping[str, Tensor]) -> Tensor:
        ids = prompt["input_ids"]
        if self._cache() is None:
            return self.extend(ids[:, common:])[:, -1]
        whole = {name: value for name, value in prompt.items() if name not in ("input_ids", "attention_mask")}
        before = self._positions
        self._mask = torch.ones_like(ids)
        positions = self._first_positions(ids, whole)[..., common:]
        if self.endless:
            positions = before[..., -1:] + torch.arange(1, ids.shape[1] - common + 1, device=ids.device)
        if before.ndim < positions.ndim:
            before = before.expand(*positions.shape[:1], *before.shape)
        elif positions.ndim < before.ndim:
            positions = positions.expand(*before.shape[:1], *positions.shape)
        self._positions = torch.cat([before[..., :common], positions], -1)
        extra = {name: value for name, value in fresh.items() if name in self._known}
        for name in ("token_type_ids", "mm_token_type_ids"):
            if name in whole and name in self._known:
                extra[name] = whole[name][:, common:]
        return self._run(ids[:, common:], extra, first=bool(fresh))[:, -1]


def image_token(config: Any) -> int:
    """The id that stands where an image goes; -1 for a model that reads none."""
    for name in ("image_token_id", "image_token_index"):
        if isinstance(getattr(config, name, None), int):
            return int(getattr(config, name))
    return -1


def _count(inputs: Mapping[str, Tensor]) -> int:
    if "pixel_values" not in inputs:
        return 0
    return inputs["image_grid_thw"].shape[0] if "image_grid_thw" in inputs else _each(inputs, "pixel_values").shape[0]


def _each(inputs: Mapping[str, Tensor], name: str) -> Tensor:
    """The part with one entry for each image (of patches: for each patch): some families have a batch before it."""
    batched = inputs["pixel_values"].ndim == 5 and "image_sizes" not in inputs
    return inputs[name][0] if batched else inputs[name]


def _begins_with(prompt: Inputs, images: Mapping[str, Tensor], count: int) -> bool:
    if not count:
        return True
    if {*images} != {*prompt} & {*OF_IMAGES} or _count(prompt) < count:
        return False
    for name, value in images.items():
        if value.shape[0] != 1 and value.shape[1:] != prompt[name].shape[1:]:
            return False
        old, new = _each(images, name), _each(prompt, name)
        if not torch.equal(old, new[: old.shape[0]]):
            return False
    return True


def _after(prompt: Inputs, count: int) -> dict[str, Tensor]:
    """What the prompt says of the images after the first `count`; nothing if there are no more."""
    if _count(prompt) <= count:
        return {}
    found = {}
    for name in {*prompt} & {*OF_IMAGES}:
        skip = count
        if name == "pixel_values" and "image_grid_thw" in prompt:
            skip = int(prompt["image_grid_thw"][:count].prod(1).sum())
        value = prompt[name]
        found[name] = value[:, skip:] if _each(prompt, name) is not value else value[skip:]
    return found
