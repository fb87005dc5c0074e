"""Hierarchy paths and the globs that select them.

A path is dotted segments: modality, then `blocks.N` or a part, then the layer, as in
`language.blocks.3.mlp.up_proj`. In a pattern `*` stands inside one segment, `**` for any number of segments, and
`{0,1,5-7}` for alternatives or a range of integers. **A pattern selects a path if it matches the path itself or any
of its ancestors**, so `vision.blocks.*` selects every layer of every vision block.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

from gossamer.core.errors import PlanError

_TOKEN = re.compile(r"\*\*|\*|\{[^{}]*\}|[^*{}]+|[{}]")


def _alternatives(body: str) -> str:
    options: list[str] = []
    for item in body.split(","):
        span = re.fullmatch(r"\s*(\d+)-(\d+)\s*", item)
        if span:
            low, high = int(span.group(1)), int(span.group(2))
            options += [str(number) for number in range(low, high + 1)]
        else:
            options.append(re.escape(item.strip()))
    return "(?:" + "|".join(options) + ")"


@lru_cache(maxsize=4096)
def compile_pattern(pattern: str) -> re.Pattern[str]:
    """The regular expression of a glob. Raises `PlanError` if the glob is empty or its braces do not close."""
    out = ""
    for token in _TOKEN.findall(pattern.strip()):
        if token == "**":
            out += ".*"
        elif token == "*":
            out += "[^.]*"
        elif token.startswith("{") and token.endswith("}") and len(token) > 2:
            out += _alternatives(token[1:-1])
        elif token in "{}" or token == "{}":
            raise PlanError(f"path pattern {pattern!r} is malformed: braces must close and hold a list such as {{0,1}}")
        else:
            out += re.escape(token)
    if not out:
        raise PlanError("a path pattern is empty: write one such as language.blocks.*")
    return re.compile(out + r"(?:\..*)?", re.DOTALL)


def matches(pattern: str, path: str) -> bool:
    """Whether `pattern` selects `path` (itself or through an ancestor)."""
    return compile_pattern(pattern).fullmatch(path) is not None


def listed(paths: Sequence[str]) -> str:
    """The first paths in a sentence, and how many more there are."""
    return ", ".join(paths[:4]) + (f" and {len(paths) - 4} more" if len(paths) > 4 else "")
