"""From a question to the text that a vision-language model is given: its own template, or its chat format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gossamer.core.errors import DataError

INSTRUCTION = "Answer the question using a single word or phrase."
"""What follows the question in a chat prompt (LLaVA-1.5's own words for short answers)."""


@dataclass(frozen=True)
class Prompt:
    """`template` has `{question}` where the question goes; everything else is taken as it stands."""

    template: str

    def __post_init__(self) -> None:
        if "{question}" not in self.template:
            raise DataError(f"prompt {self.template!r} has no place for the question: write {{question}} into it")

    def __call__(self, question: str) -> str:
        """The prompt of one question."""
        return self.template.replace("{question}", question)


def prompt_of(opened: Any, template: str | None = None) -> Prompt:
    """The prompt to use: `template` if given, else the model's own default, else its chat template.

    Raises `DataError` if the model has none of these.
    """
    template = template or opened.defaults.get("prompt")
    if template is not None:
        return Prompt(template)
    processor = opened.processor
    if getattr(processor, "chat_template", None):
        content = [{"type": "image"}, {"type": "text", "text": f"{{question}}\n{INSTRUCTION}"}]
        chat = [{"role": "user", "content": content}]
        return Prompt(processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False))
    raise DataError(
        f"{opened.source} has neither a default prompt nor a chat template: give one with {{question}} in it, "
        'such as --prompt "<image>\\nQuestion: {question} Answer:"'
    )


def answer_ids(tokenizer: Any, prompt: str, answer: str) -> list[int]:
    """The tokens that continue `prompt` with `answer`, as the model would write them.

    A space lies between the two unless the prompt ends in white space. Raises `DataError` for an answer that the
    tokenizer cannot write.
    """
    joint = answer if prompt[-1:].isspace() else " " + answer
    before = list(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    whole = list(tokenizer(prompt + joint, add_special_tokens=False)["input_ids"])
    if whole[: len(before)] == before and len(whole) > len(before):
        return whole[len(before) :]
    ids = list(tokenizer(joint, add_special_tokens=False)["input_ids"])
    if not ids:
        raise DataError(f"the tokenizer has no tokens for the answer {answer!r}")
    return ids
