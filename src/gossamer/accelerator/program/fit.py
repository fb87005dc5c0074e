"""How a program is cut to fit the memories on chip: pieces of weights, bands of rows, loads beside computations."""

from collections.abc import Callable
from dataclasses import dataclass

from gossamer.accelerator.program.ahead import constants_first
from gossamer.accelerator.program.draft import Draft
from gossamer.accelerator.program.place import Beside, FullError, place
from gossamer.accelerator.program.products import Work
from gossamer.core.errors import SettingError
from gossamer.dataflow.engine import IntegerEngine
from gossamer.dataflow.schedule import Space, Step

Build = Callable[[Work], None]
"""Writes a program's steps into `Work.draft`."""

_UNITS = {Space.SRAM: "lines", Space.PARAMETERS: "entries", Space.GROUPS: "group words", Space.TABLES: "tables"}


@dataclass(frozen=True)
class _Way:
    """`piece`, `band`: see `Work`."""

    piece: int
    band: int
    beside: Beside

    def steps(self, engine: IntegerEngine, build: Build, most: tuple[int, ...]) -> list[Step]:
        work = Work(engine, Draft(engine), self.piece, self.band, self.beside > Beside.NEVER)
        build(work)
        return place(constants_first(work.draft, most), self.beside, most)


def fitted(engine: IntegerEngine, build: Build, rows: int, most: tuple[int, ...] = ()) -> list[Step]:
    """A program's steps with addresses, cut into the largest pieces that fit, loads beside computations if possible.

    Args:
        engine: the engine.
        build: writes the steps; called once for every way that is tried.
        rows: rows that the program treats.
        most: greatest value of each register.

    Raises:
        SettingError: the tensor that does not fit, and the nearest engine that would take all.
    """
    ways = _ways(engine, rows)
    for way in ways:
        try:
            return way.steps(engine, build, most)
        except FullError:
            if way == ways[0]:
                _demand(ways[-1], engine, build, rows, most)
    raise AssertionError("the last way had been found to fit")


def _ways(engine: IntegerEngine, rows: int) -> list[_Way]:
    """From the fastest to the one that needs the least room. Very small pieces waste time, so there are none."""
    pieces = [engine.bank_lines >> i for i in range(min(engine.bank_lines.bit_length(), 6))]
    blocks = -(-rows // engine.line_rows)
    bands = [-(-blocks // (1 << i)) * engine.line_rows for i in range((blocks - 1).bit_length() + 1)]
    return [
        _Way(piece, band, beside)
        for beside in (Beside.ALWAYS, Beside.OFTEN, Beside.NEVER)
        for band in bands
        for piece in (pieces[:3] if beside == Beside.ALWAYS else pieces)
    ]


def _demand(least: _Way, engine: IntegerEngine, build: Build, rows: int, most: tuple[int, ...]) -> None:
    """Refuses where even the way that needs the least room finds none."""
    try:
        least.steps(engine, build, most)
    except FullError as error:
        buffer = error.buffer
        raise SettingError(
            f"{buffer.name}: {buffer.size} {_UNITS[buffer.space]} find no room in the {buffer.space.name} memory; "
            f"{_larger(engine, build, rows, most)}"
        ) from error


def _larger(engine: IntegerEngine, build: Build, rows: int, most: tuple[int, ...]) -> str:
    """Words on the smallest engine of the same array that takes the program."""
    for field in ("bank_lines", "parameters", "groups"):
        value = 2 * getattr(engine, field)
        while value <= 1 << 20:
            changed = engine.model_copy(update={field: value})
            try:
                _ways(changed, rows)[-1].steps(changed, build, most)
            except FullError:
                value *= 2
                continue
            return f"an engine with {field} = {value} takes the program"
    return "more than one of bank_lines, banks, parameters and groups must grow"
