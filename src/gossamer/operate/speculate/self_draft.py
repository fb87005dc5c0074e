"""Drafts by the target's own first blocks."""

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from gossamer.core.errors import ModelError, SettingError
from gossamer.engine.sampling import Sampler
from gossamer.engine.stepping import Inputs, Stepper, StepperOf
from gossamer.models.structure import hierarchy_of
from gossamer.operate.speculate.follow import Follower


@dataclass(frozen=True)
class SelfDraft:
    """Leaves the target after its first `blocks` language blocks, straight to its last norm and head (early exit, as in
    LayerSkip, Elhoushi et al. 2024, arXiv 2404.16710). No weights of its own, but a past of its own."""

    blocks: int
    certain: ClassVar[bool] = False

    def begin(
        self, target: nn.Module, inputs: Inputs, sampler: Sampler, size: int, stepper_of: StepperOf = Stepper
    ) -> Follower:
        """See `Drafter`."""
        return Follower(first_blocks(target, self.blocks), inputs, sampler, size, stepper_of)


def first_blocks(model: Any, count: int) -> Any:
    """The model with the first `count` of its language blocks only; all that it has are the model's own modules.

    Raises `SettingError` unless that is at least one block and not all, `ModelError` for a model whose language blocks
    are not known.
    """
    blocks = language_blocks(model)
    if not blocks:
        raise ModelError(f"{type(model).__name__} has no language blocks that are known: it cannot draft for itself")
    if not 1 <= count < len(blocks):
        raise SettingError(f"self:{count} is not possible: the model has {len(blocks)}, give 1 to {len(blocks) - 1}")
    tower = blocks[0].rpartition(".")[0]
    *way, name = tower.split(".")
    shorter = owner = _twin(model, len(blocks), count)
    for piece in way:
        part = _twin(getattr(owner, piece), len(blocks), count)
        owner._modules[piece] = part
        owner = part
    owner._modules[name] = nn.ModuleList(model.get_submodule(block) for block in blocks[:count])
    return shorter


def language_blocks(model: Any) -> list[str]:
    """The modules that are the model's language blocks, in order; none where they are not known."""
    blocks = hierarchy_of(model, model.config).blocks()
    return [block.module for block in blocks if block.path.startswith("language.")]


def _twin(module: Any, blocks: int, count: int) -> Any:
    """The module again, with the same parts and parameters, but a list of parts and a config of its own: the config
    speaks of so many blocks, as caches are made by it."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    if hasattr(module, "config"):
        twin.config = copy.deepcopy(module.config)
        text = twin.config.get_text_config(decoder=True)
        for name, value in list(vars(text).items()):
            if isinstance(value, list) and len(value) == blocks:
                setattr(text, name, value[:count])
        text.num_hidden_layers = count
    return twin
