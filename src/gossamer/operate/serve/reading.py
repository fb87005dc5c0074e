"""From a client's body to a request for the engine: text in the model's form, images decoded, limits kept."""

import base64
import binascii
import copy
import secrets
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gossamer.core.errors import DataError
from gossamer.data.images import image_from_bytes
from gossamer.engine.decode import Request, prompt_ids, room_for
from gossamer.engine.sampling import Sampling
from gossamer.evaluate.prompts import chat_inputs, prompt_inputs
from gossamer.models.open import Opened
from gossamer.operate.serve.protocol import ChatCompletion, Completion, TextCompletion, TextPart

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_NEW_TOKENS = 4096
"""Of a chat answer whose request names no limit; the context may end it earlier."""


class Reader:
    """Reads bodies, in one thread at a time: it has a tokenizer and a processor of its own, so that whoever writes text
    in another thread is not disturbed."""

    def __init__(self, opened: Opened, most_images: int) -> None:
        processor, tokenizer = copy.deepcopy((opened.processor, opened.tokenizer))
        self._opened = replace(opened, processor=processor, tokenizer=tokenizer)
        self._most_images = most_images

    def read(self, body: Completion) -> Request:
        """The request. Raises `DataError` for images that are none, and a prompt that the model cannot take or that
        leaves no room in its context."""
        if isinstance(body, ChatCompletion):
            inputs = self._chat(body)
            limit = body.max_completion_tokens or body.max_tokens or MOST_NEW_TOKENS
        else:
            assert isinstance(body, TextCompletion)
            inputs = prompt_inputs(self._opened, body.text, raw=True)
            limit = body.max_tokens or 16
        room_for(self._opened.model, prompt_ids(self._opened.model, inputs))
        sampling = Sampling(
            body.temperature,
            body.top_k,
            body.top_p,
            body.min_p,
            body.repetition_penalty,
            body.presence_penalty,
            body.frequency_penalty,
            secrets.randbits(63) if body.seed is None else body.seed % 2**63,
        )
        return Request(inputs, sampling, limit, body.stops)

    def _chat(self, body: ChatCompletion) -> dict[str, Any]:
        images: list[Image] = []
        chat = []
        for turn, message in enumerate(body.messages):
            content: list[dict[str, str]] = []
            for place, part in enumerate(message.parts):
                if isinstance(part, TextPart):
                    content.append({"type": "text", "text": part.text})
                    continue
                if len(images) == self._most_images:
                    raise DataError(f"too many images: a request may hold {self._most_images}")
                images.append(image_of(part.image_url.url, f"messages.{turn}.content.{place}.image_url"))
                content.append({"type": "image"})
            chat.append({"role": "system" if message.role == "developer" else message.role, "content": content})
        return chat_inputs(self._opened, chat, images)


def image_of(url: str, where: str) -> "Image":
    """The image that a data URL holds. Raises `DataError`, with `where` it stands, for any other URL or content."""
    head, comma, data = url.partition(",")
    if not comma or not head.startswith("data:image/") or not head.endswith(";base64"):
        raise DataError(f"{where}: an image is given as data:image/…;base64,…; nothing is fetched from elsewhere")
    try:
        content = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{where}: the data is not base64 ({error})") from None
    return image_from_bytes(content, where)
