"""Progress on standard error: stage, count, rate and time left; silent where stderr is no terminal."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

T = TypeVar("T")


class Progress:
    """A reporter that jobs are handed. `Progress()` shows bars on a terminal; `Progress(enabled=False)` is silent."""

    def __init__(self, enabled: bool = True) -> None:
        self._enabled = enabled
        self._bars: RichProgress | None = None

    def track(self, items: Iterable[T], stage: str, total: int | None = None) -> Iterator[T]:
        """Iterates over `items` while a bar named `stage` shows count, rate and time left."""
        bars = self._started()
        if total is None and hasattr(items, "__len__"):
            total = len(items)  # type: ignore[arg-type]
        if bars is None:
            yield from items
            return
        task = bars.add_task(stage, total=total)
        try:
            for item in items:
                yield item
                bars.advance(task)
        finally:
            bars.remove_task(task)

    def say(self, message: str) -> None:
        """One line of news on standard error."""
        if not self._enabled:
            return
        bars = self._started()
        if bars is not None:
            bars.console.print(message, highlight=False)
        else:
            import sys

            print(message, file=sys.stderr, flush=True)

    def _started(self) -> "RichProgress | None":
        if not self._enabled:
            return None
        if self._bars is None:
            from rich import progress as rich_progress
            from rich.console import Console

            console = Console(stderr=True)
            if not console.is_terminal:
                return None
            self._bars = rich_progress.Progress(
                rich_progress.TextColumn("{task.description}"),
                rich_progress.BarColumn(),
                rich_progress.MofNCompleteColumn(),
                rich_progress.TimeElapsedColumn(),
                rich_progress.TextColumn("left"),
                rich_progress.TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self._bars.start()
        return self._bars

    def close(self) -> None:
        """Removes the bars."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


SILENT = Progress(enabled=False)
