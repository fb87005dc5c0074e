"""From what a user asks for to a drafter that fits the model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gossamer.core.errors import ModelError, SettingError
from gossamer.core.runfolder import checkpoint_of
from gossamer.evaluate.prompts import prompt_inputs
from gossamer.evaluate.tokens import tokenizer_of
from gossamer.operate.speculate.decode import Speculation
from gossamer.operate.speculate.draft_model import DraftModel
from gossamer.operate.speculate.drafter import Drafter
from gossamer.operate.speculate.lookup import PromptLookup
from gossamer.operate.speculate.self_draft import SelfDraft
from gossamer.operate.speculate.verify import RULES
from gossamer.operate.writer import Engine, open_writer

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Wish:
    """`drafter` is `lookup`, `self:N` (the first N blocks) or a model, as in `open_model`; `draft_tokens` a number or
    `auto`; `drafts` are verified together by `rule`, `kseq` or `recursive`."""

    drafter: str
    draft_tokens: str = "auto"
    drafts: int = 1
    rule: str = "kseq"

    def fitted(
        self, target: Any, prompt: str, images: Sequence["Image"] = (), raw: bool = False, engine: Engine = "auto",
        on: str = "cpu",
    ) -> Speculation:  # fmt: skip
        """The speculation for one prompt of the open model `target`; a draft model runs on `engine` and device `on`.

        Raises `SettingError` for what cannot be meant, and `ModelError` for a draft model that does not write or has
        another tokenizer.
        """
        return Speculation(
            self._drafter(target, prompt, images, raw, engine, on), self._length(), self.drafts, self._rule()
        )

    def _drafter(
        self, target: Any, prompt: str, images: Sequence["Image"], raw: bool, engine: Engine, on: str
    ) -> Drafter:
        if self.drafter == "lookup":
            return PromptLookup()
        kind, _, blocks = self.drafter.partition(":")
        if kind == "self":
            if not blocks.isdecimal():
                raise SettingError(f"{self.drafter} is not possible: write self:N, N being the number of first blocks")
            return SelfDraft(int(blocks))
        writer = open_writer(checkpoint_of(self.drafter), engine, on)
        draft = writer.opened
        if tokenizer_of(draft).get_vocab() != tokenizer_of(target).get_vocab():
            raise ModelError(
                f"the draft {self.drafter} has another tokenizer than {target.source}: give a model with the same one"
            )
        sees = bool(images) and getattr(draft.processor, "image_processor", None) is not None
        inputs = prompt_inputs(draft, prompt, images, raw) if sees else None
        return DraftModel(draft.model, inputs, writer.stepper_of)

    def _length(self) -> int | None:
        if self.draft_tokens == "auto":
            return None
        if not self.draft_tokens.isdecimal():
            raise SettingError(f"{self.draft_tokens!r} drafted tokens are not possible: give a number or auto")
        return int(self.draft_tokens)

    def _rule(self) -> Any:
        if self.rule not in RULES:
            raise SettingError(f"rule {self.rule!r} is not known: give one of {', '.join(RULES)}")
        return RULES[self.rule]
