"""Text out of tokens as they come: whole characters only, and nothing of a stop string."""

from collections.abc import Sequence
from typing import Any

INCOMPLETE = "\ufffd"
"""What a tokenizer writes for bytes that are not, or not yet, a character."""


class TextStream:
    """The text of one answer, piece by piece.

    Joined, the pieces are the tokenizer's text of all tokens, special tokens left out, up to the first of the strings
    `stops`. Held back is what may still change: bytes that do not make a character yet, and an end that may become a
    stop string. `stopped` says that one has come; what follows it is dropped. (Bytes that never make a character may
    spoil the good ones before them in some tokenizers' text of the whole; in a stream those have been said.)
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stops = tuple(stop for stop in stops if stop)
        self._ids: list[int] = []
        # Text is that of the tokens from `_start` on less that of the tokens from `_start` to `_read`: a token's text
        # may depend on the one before it (a space in front, a half character), not on more.
        self._start = self._read = 0
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that is certain after this token, as far as it has not been given yet."""
        self._ids.append(token)
        return self._release(self._fresh(last=False), last=False)

    def end(self) -> str:
        """The text that is still held back; no token may follow."""
        return self._release(self._fresh(last=True), last=True)

    def _fresh(self, last: bool) -> str:
        before, now = self._text(self._ids[self._start : self._read]), self._text(self._ids[self._start :])
        if len(now) <= len(before) or (now.endswith(INCOMPLETE) and not last):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return now[len(before) :]

    def _text(self, ids: list[int]) -> str:
        if not ids:
            return ""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _release(self, fresh: str, last: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + fresh
        found = [at for at in (text.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = 0 if last else max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` begin `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if stop.startswith(text[-size:])), 0)
