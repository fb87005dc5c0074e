"""What the verbs share: a quiet place to work in, results on standard output, numbers with their units."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

from gossamer.core.native import native_output_to
from gossamer.core.progress import Progress
from gossamer.core.units import format_bytes

Result = Mapping[str, Any]

_QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "COMPRESSED_TENSORS_LOG_DISABLED": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

_NAMES = {
    "weight": "weights",
    "weight_disk": "weights on disk",
    "weight_memory": "weights in memory, running",
    "decode": "decode, per token",
    "image": "image encoding",
    "ap50": "AP50",
    "kl": "KL, nats",
    "default_kl": "default KL, nats",
}


@contextmanager
def job(threads: int | None = None) -> Iterator[Progress]:
    """Where a verb calls its function: libraries kept quiet, standard output kept for the result."""
    import warnings

    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    with warnings.catch_warnings(), redirect_stdout(sys.stderr), native_output_to(2), Progress() as progress:
        if not os.environ.get("GOSSAMER_DEBUG"):
            warnings.simplefilter("ignore")
        yield progress


@contextmanager
def output() -> Iterator[Callable[[str], None]]:
    """A writer to standard output as it is here, for text that has to appear while a `job` inside keeps it quiet."""
    with os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding, errors="replace") as there:

        def write(text: str) -> None:
            there.write(text)
            there.flush()

        yield write


def show(result: Result, as_json: bool, draw: Callable[[Result], None]) -> None:
    """Prints a result, as one JSON object or as `draw` prints it for people; its warnings go to standard error."""
    for warning in result.get("warnings", ()):
        print(f"warning: {warning}", file=sys.stderr)
    if as_json:
        print(json.dumps(result, indent=1, default=_plain))
    else:
        draw(result)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a compact table: the first column to the left, the others to the right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, show_header=any(columns))
    for number, name in enumerate(columns):
        grid.add_column(Text(name), justify="right" if number else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row))
    console = _console()
    console.print(Text(title, style="bold"), soft_wrap=True)
    console.print(grid)


def line(text: str) -> None:
    """Prints one line as it is."""
    _console().print(text, markup=False, highlight=False, soft_wrap=True)


def quantity(key: str, value: Any) -> str:
    """A number with the unit that its key's suffix names: `quantity("weight_bytes", 3e6)` is `3 MB`."""
    if isinstance(value, Mapping) and "value" in value:
        return measured(key, value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if key.endswith("bytes"):
        return format_bytes(value)
    for suffix, unit in (("_percent", " %"), ("_ms", " ms"), ("_mj", " mJ"), ("_s", " s")):
        if key.endswith(suffix):
            return f"{value:.4g}{unit}" if abs(value) < 1e4 else f"{value:,.0f}{unit}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def measured(key: str, value: Mapping[str, Any]) -> str:
    """A measured value with its interval, where it has one."""
    point = quantity(key, value["value"])
    low, high = value.get("low"), value.get("high")
    return point if low == high else f"{point} [{quantity(key, low)}, {quantity(key, high)}]"


def named(key: str) -> str:
    """A key for people: `weight_bytes` is `weights`, `saving_percent` is `saving`."""
    stem = key
    for suffix in ("_bytes", "_percent", "_ms", "_mj", "_s"):
        stem = stem.removesuffix(suffix)
    return _NAMES.get(stem, stem.replace("_", " ").replace("macs", "MACs"))


def spread(measured: Iterable[str]) -> str:
    """What the intervals of these keys' figures are."""
    return "95 % interval; times: quartiles" if any(key.endswith("_ms") for key in measured) else "95 % interval"


def notes(result: Result) -> None:
    """Prints a result's notes, one a line."""
    for note in result.get("notes", ()):
        line(note if isinstance(note, str) else note["text"])


def figures(title: str, values: Mapping[str, Any], head: str = "") -> None:
    """Prints a two-column table of named quantities."""
    table(title, ("", head), [(named(key), quantity(key, value)) for key, value in values.items()])


def _console() -> Any:
    from rich.console import Console

    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120)


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else str(value)
