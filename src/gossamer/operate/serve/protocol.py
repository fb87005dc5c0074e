"""What clients of OpenAI's API send and get: bodies, answers, pieces of a stream, errors.

A body with a field that is not here is refused, as is a value that would have to be ignored: no setting is dropped
silently. A field that is null counts as left out, as it does there. `top_k`, `min_p` and `repetition_penalty` go beyond
that API.
"""

import json
import time
import uuid
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gossamer.core.errors import DataError, SettingError
from gossamer.engine.decode import Finish

STOPS = 4
SAID: Mapping[Finish, str] = {"eos": "stop", "stop": "stop", "length": "length", "context": "length"}
"""Why an answer ended, in that API's words."""


class ApiError(Exception):
    """What is said instead of an answer."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(status)
        kind = kind or ("server_error" if status >= 500 else "invalid_request_error")
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


def api_error(error: Exception) -> ApiError:
    """The error as a client is told of it: what it has sent is at fault, or this server is."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, (DataError, SettingError)):
        return ApiError(400, str(error), code="invalid_value")
    return ApiError(500, f"{type(error).__name__}: {error}")


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        return {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else data


class StreamOptions(_Body):
    """Whether the last piece of a stream tells the usage."""

    include_usage: bool = False


class Completion(_Body):
    """What both kinds of requests say about how to answer."""

    model: str
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    min_p: float = Field(0.0, ge=0, le=1)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float = Field(1.0, gt=0)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | Annotated[list[str], Field(max_length=STOPS)] = []
    max_tokens: int | None = Field(None, ge=1)
    n: Literal[1] = 1
    user: str = ""

    @property
    def stops(self) -> tuple[str, ...]:
        """The strings that end the answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class TextCompletion(Completion):
    """The body of `/v1/completions`."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=1)]
    best_of: Literal[1] = 1
    echo: Literal[False] = False

    @property
    def text(self) -> str:
        """The text to be continued."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]


class TextPart(_Body):
    """A text inside a message."""

    type: Literal["text"]
    text: str


class ImageUrl(_Body):
    """Where an image is: a data URL that holds it. `detail` is a wish that no model here knows."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(_Body):
    """An image inside a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


class Message(_Body):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]]

    @property
    def parts(self) -> list[TextPart | ImagePart]:
        """The content, part by part."""
        return [TextPart(type="text", text=self.content)] if isinstance(self.content, str) else self.content


class TextFormat(_Body):
    """The only form of an answer."""

    type: Literal["text"]


class ChatCompletion(Completion):
    """The body of `/v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: Literal[False] = False
    response_format: TextFormat = TextFormat(type="text")


AnyBody = TypeVar("AnyBody", bound=Completion)


def parse(kind: type[AnyBody], data: bytes) -> AnyBody:
    """The body that the JSON `data` holds. Raises `ApiError` 400 that names the first field at fault."""
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        param = str(first["loc"][0]) if first["loc"] else None
        if first["type"] == "extra_forbidden":
            raise ApiError(
                400, f"{place} is no field that is known here", param=param, code="unknown_parameter"
            ) from None
        where = f"{place}: " if place else ""
        raise ApiError(400, f"{where}{first['msg']}", param=param, code="invalid_value") from None


class Answer:
    """The forms of one answer: of a chat or of a continued text, whole or in pieces."""

    def __init__(self, body: Completion) -> None:
        self._chat = isinstance(body, ChatCompletion)
        self._streams, self._wants_usage = body.stream, body.stream_options.include_usage
        kind = "chat.completion" if self._chat else "text_completion"
        self._head = {
            "id": f"{'chatcmpl' if self._chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": f"{kind}.chunk" if self._chat and self._streams else kind,
            "created": int(time.time()),
            "model": body.model,
        }

    def whole(self, text: str, finish: Finish, usage: Mapping[str, Any]) -> dict[str, Any]:
        """The answer in one piece."""
        said: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        return {**self._head, "choices": [self._choice(said, finish)], "usage": usage}

    def first(self) -> bytes:
        """What a stream begins with."""
        return self._event([self._choice({"delta": {"role": "assistant", "content": ""}})]) if self._chat else b""

    def piece(self, text: str, finish: Finish | None) -> bytes:
        """More of the text."""
        said: dict[str, Any] = {"delta": {"content": text} if text else {}} if self._chat else {"text": text}
        return self._event([self._choice(said, finish)])

    def last(self, usage: Mapping[str, Any]) -> bytes:
        """What a stream ends with."""
        told = self._event([], usage) if self._wants_usage else b""
        return told + b"data: [DONE]\n\n"

    def _choice(self, said: Mapping[str, Any], finish: Finish | None = None) -> dict[str, Any]:
        return {"index": 0, **said, "logprobs": None, "finish_reason": None if finish is None else SAID[finish]}

    def _event(self, choices: list[dict[str, Any]], usage: Mapping[str, Any] | None = None) -> bytes:
        return server_sent({**self._head, "choices": choices, **({"usage": usage} if self._wants_usage else {})})


def server_sent(data: Mapping[str, Any]) -> bytes:
    """An event of a stream of server-sent events."""
    return f"data: {json.dumps(data)}\n\n".encode()
