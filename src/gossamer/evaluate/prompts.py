"""From a question, or any text and images, to what a model is given: its own template, or its chat format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gossamer.core.errors import DataError, ModelError
from gossamer.evaluate import tokens
from gossamer.models.loading import first_line

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

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


def prompt_inputs(opened: Any, text: str, images: Sequence[Image] = (), raw: bool = False) -> dict[str, Tensor]:
    """What the model is given for one prompt of text and images: `input_ids` (1, length) and what belongs to it.

    The text goes into the model's own prompt if there are images, else into its chat template; it is taken as it
    stands if the model has neither, or with `raw` (it then holds the places of its images itself). Raises `DataError`
    for a model without a tokenizer, or for images that it does not read or has no place for.
    """
    if raw:
        return _encoded(opened, text, True, images)
    parts: list[Part] = [*({"type": "image"} for _ in images), {"type": "text", "text": text}]
    return chat_inputs(opened, [{"role": "user", "content": parts}], images)


Part = dict[str, str]
"""Of a message: `{"type": "text", "text": …}` or `{"type": "image"}`."""


def chat_inputs(opened: Any, chat: Sequence[dict[str, Any]], images: Sequence[Image] = ()) -> dict[str, Tensor]:
    """The same for a conversation that the model is to go on with.

    A message is `{"role": …, "content": …}` with a list of parts; `images` are those of all messages, in order. Raises
    `DataError` too where several messages meet a model without a chat template, and `ModelError` where that fails.
    """
    _check_reads_images(opened, images)
    writer = opened.processor if getattr(opened.processor, "chat_template", None) else opened.tokenizer
    own = opened.defaults.get("prompt") if images else None
    if own is None and getattr(writer, "chat_template", None):
        plain = writer is opened.tokenizer  # templates of text models want text, not parts
        chat = [{**message, "content": _text(message)} for message in chat] if plain else chat
        try:
            written = writer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # a template is a program of the model's author
            raise ModelError(
                f"the chat template of {opened.source} fails ({first_line(error)}): give other messages, or text as it "
                "stands (--raw; /v1/completions of a server)"
            ) from error
        return _encoded(opened, written, False, images)
    if len(chat) != 1:
        raise DataError(f"{opened.source} has no chat template: it reads one message, and was given {len(chat)}")
    if images and own is None:
        raise DataError(f"{opened.source} says in no template where images go: write their places and give --raw")
    text = _text(chat[0])
    return _encoded(opened, text if own is None else Prompt(own)(text), True, images)


def _text(message: dict[str, Any]) -> str:
    return "".join(part["text"] for part in message["content"] if part["type"] == "text")


def _check_reads_images(opened: Any, images: Sequence[Image]) -> None:
    if images and getattr(opened.processor, "image_processor", None) is None:
        raise DataError(f"{opened.source} reads no images: give text only, or a vision-language model")


def _encoded(opened: Any, written: str, special: bool, images: Sequence[Image]) -> dict[str, Tensor]:
    """The inputs of a text in its final form; `special`: special tokens still have to be added."""
    _check_reads_images(opened, images)
    reader = opened.processor if images else tokens.tokenizer_of(opened)
    pictures = {"images": [list(images)]} if images else {}
    try:
        found = reader(text=[written], **pictures, add_special_tokens=special, return_tensors="pt")
    except (ValueError, IndexError, TypeError) as error:
        raise DataError(
            f"{opened.source} cannot read {len(images)} images in the prompt {written!r} ({first_line(error)})"
        ) from error
    inputs = {key: value for key, value in found.items() if key != "labels"}
    tokens.check_vocabulary(inputs["input_ids"][0].tolist(), opened)
    return inputs
