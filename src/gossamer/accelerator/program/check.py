"""The static checker: what a schedule must keep so that the engine's units, side by side, give the golden result."""

from collections.abc import Sequence

from gossamer.accelerator.isa import encode
from gossamer.accelerator.program.access import Access, Where, accesses, clash
from gossamer.core.errors import SettingError
from gossamer.dataflow.engine import REGISTERS, SCORE_TILES, IntegerEngine
from gossamer.dataflow.schedule import (
    Add,
    End,
    Fence,
    Gemm,
    Load,
    Mode,
    Norm,
    Pattern,
    Schedule,
    Space,
    Step,
    Store,
    unit,
)


class ScheduleError(SettingError):
    """A step that the engine cannot do, or not beside what is under way. `index`: the step's."""

    def __init__(self, index: int, step: Step, reason: str) -> None:
        super().__init__(f"step {index} ({type(step).__name__}): {reason}")
        self.index = index


def check(schedule: Schedule, memory: int, most: Sequence[int] = ()) -> None:
    """Proves that a schedule can run.

    No step uses what an unfenced one still writes, or a bank that one uses; operands of one step lie in different
    banks; all ranges are within the memories, for all values of the registers; sums of 32 bits cannot wrap; addresses
    are aligned; no instruction is fetched from where a load still writes.

    Args:
        schedule: the steps.
        memory: bytes of the outer memory.
        most: greatest value of R[1], R[2], …

    Raises:
        ScheduleError: the first step at fault and the reason.
    """
    engine = schedule.engine
    if not schedule.steps or not isinstance(schedule.steps[-1], End):
        raise SettingError("a schedule ends with End")
    sizes = {
        Where.SRAM: engine.lines,
        Where.PARAMETERS: engine.parameters,
        Where.GROUPS: engine.groups,
        Where.TABLES: engine.tables,
        Where.INSTRUCTIONS: engine.instructions,
        Where.OUTER: memory,
    }
    under_way: dict[str, tuple[int, list[Access]]] = {}
    score: Gemm | None = None
    for i, step in enumerate(schedule.steps):
        _fetched(i, step, engine, under_way)
        try:
            encode(step)
        except SettingError as error:
            raise ScheduleError(i, step, str(error)) from error
        if isinstance(step, End):
            if i + 1 < len(schedule.steps):
                raise ScheduleError(i, step, "is not the last step")
            return
        if isinstance(step, Fence):
            for name in ("load", "store", "compute"):
                if getattr(step, name):
                    under_way.pop(name, None)
            continue
        touched = accesses(step, engine, most)
        for access in touched:
            if access.start < 0 or access.stop > sizes[access.where]:
                raise ScheduleError(
                    i, step, f"{access.operand} reaches {access.stop} of {sizes[access.where]} in {access.where.name}"
                )
        reason = _apart(touched, engine) or _fits(step, engine, most)
        if isinstance(step, Gemm) and step.mode == Mode.VALUE:
            reason = reason or _paired(step, score)
        score = step if isinstance(step, Gemm) and step.mode == Mode.SCORE else score
        if reason:
            raise ScheduleError(i, step, reason)
        by = unit(step)
        assert by is not None
        for other, (earlier, its) in under_way.items():
            reason = clash(touched, its, engine.bank_lines) if other != by else None
            if reason:
                raise ScheduleError(i, step, f"step {earlier} may still be under way: {reason}; a fence is missing")
        under_way[by] = (i, touched)


def _fetched(index: int, step: Step, engine: IntegerEngine, under_way: dict[str, tuple[int, list[Access]]]) -> None:
    """The instruction's place in the ring is not being written."""
    at = index % engine.instructions
    for access in under_way.get("load", (0, []))[1]:
        if access.where == Where.INSTRUCTIONS and access.start <= at < access.stop:
            raise ScheduleError(index, step, f"its place in the ring, {at}, may still be loaded")


def _apart(touched: list[Access], engine: IntegerEngine) -> str | None:
    """Operands of one step lie in different banks."""
    names = sorted({access.operand for access in touched if access.where == Where.SRAM})
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            reason = clash(
                [a for a in touched if a.operand == one and a.where == Where.SRAM],
                [a for a in touched if a.operand == other and a.where == Where.SRAM],
                engine.bank_lines,
            )
            if reason:
                return reason
    return None


def _fits(step: Step, engine: IntegerEngine, most: Sequence[int]) -> str | None:
    """What the units demand of one step."""
    highest = [0, *most] + [0] * (REGISTERS - 1 - len(most))
    match step:
        case Load():
            return _load_fits(step, engine, highest[step.register])
        case Store():
            pitches = {"block_pitch": step.block_pitch, "row_pitch": step.row_pitch, "chunk_pitch": step.chunk_pitch}
            if step.pattern == Pattern.LINES:
                return _multiple({"address": step.address}, engine.bus_bytes)
            return _multiple({"address": step.address, **pitches}, engine.depth)
        case Gemm():
            return _gemm_fits(step, engine, highest[step.register])
        case Norm():
            rows = {"a.row": step.a.row, "out.row": step.out.row}
            return _multiple({"parameters": step.parameters}, engine.lanes) or _first_rows(rows, engine)
        case Add():
            return _first_rows({"a.row": step.a.row, "out.row": step.out.row, "b.row": step.b.row}, engine)
    return None


def _first_rows(rows: dict[str, int], engine: IntegerEngine) -> str | None:
    """Vector units start at whole groups of rows, in a tensor's first line."""
    for name, row in rows.items():
        if row >= engine.line_rows:
            return f"{name} is {row}; a line has {engine.line_rows} rows"
    return _multiple(rows, engine.norm_rows)


def _load_fits(step: Load, engine: IntegerEngine, most: int) -> str | None:
    if step.space != Space.SRAM and step.pattern != Pattern.LINES:
        return f"{step.space.name} is loaded by lines only"
    wrong = _multiple(
        {"address": step.address, "row_pitch": step.row_pitch, "address_step": step.address_step}, engine.bus_bytes
    )
    if wrong:
        return wrong
    if step.pattern == Pattern.TRANSPOSED:
        return _multiple({"a row's bytes": step.chunks * engine.depth}, engine.bus_bytes)
    return None


def _gemm_fits(step: Gemm, engine: IntegerEngine, most: int) -> str | None:
    n, k = step.sizes(most)
    wrong = _multiple(
        {f"{name}.row": getattr(step, name).row for name in ("a", "out", "aux")}, engine.rows
    ) or _multiple({"w.row": step.w.row}, engine.columns)
    if wrong:
        return wrong
    if step.four_bit and not engine.four_bit:
        return "this engine has no 4-bit weights"
    if step.mode in (Mode.SCORE, Mode.VALUE):
        tiles, most_tiles = -(-step.m // engine.rows), 1 if step.causal else SCORE_TILES
        if tiles > most_tiles:
            return f"{step.m} rows of scores; the engine takes {most_tiles * engine.rows} at once"
        columns = n if step.mode == Mode.SCORE else k
        if tiles * -(-columns // engine.depth) > engine.chunks:
            return (
                f"{step.m} rows of {columns} scores; the engine holds {engine.chunks} chunks of {engine.rows} rows "
                f"and {engine.depth} columns"
            )
    else:
        wrong = _multiple({"parameters": step.parameters}, engine.lanes)
    greatest = 255 * 128 if step.mode == Mode.VALUE else 128 * (8 * 15 if step.four_bit else 128)
    if wrong is None and k * greatest >= 1 << 31:
        return f"sums over k = {k} can pass 32 bits"
    return wrong


def _paired(value: Gemm, score: Gemm | None) -> str | None:
    """A VALUE reads what the SCORE before it wrote."""
    if score is None or (value.a, value.m) != (score.out, score.m):
        return "VALUE reads other exponentials than the SCORE before it wrote"
    if (value.k, value.add_k, value.register * value.add_k) != (score.n, score.add_n, score.register * score.add_n):
        return "VALUE reads more or fewer columns than the SCORE before it wrote"
    return None


def _multiple(values: dict[str, int], of: int) -> str | None:
    for name, value in values.items():
        if value % of:
            return f"{name} is {value}; a multiple of {of} is needed"
    return None
