"""The schedule: what the integer engine does, step by step. One object for everybody.

The golden model executes it (`accelerator/golden/machine.py`), the instruction set encodes it
(`accelerator/isa.py`), the sequencer runs it, the cycle model times it (`cycles.py`), and the memory traffic is
read off it. What every step computes is defined, to the bit, in `docs/accelerator.md`; the arithmetic in
`accelerator/golden/arithmetic.py`.

Addresses in the unified memory are lines; a tensor of 8-bit elements with E columns is `ceil(E / depth)` chunks
wide, one of 16 bits twice that. Row r, chunk k of a tensor at `line` with `pitch` chunks lies in line
`line + (r // line_rows) * pitch + k`, row `r % line_rows`. In the outer memory the same order is called an *image*.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import IntEnum

from gossamer.dataflow.engine import IntegerEngine


class Space(IntEnum):
    """Where a load writes to."""

    SRAM = 0
    PARAMETERS = 1
    GROUPS = 2
    TABLES = 3
    INSTRUCTIONS = 4


class Pattern(IntEnum):
    """How a transfer walks: contiguous lines; single rows; bytes of a row spread over rows (a transpose)."""

    LINES = 0
    ROWS = 1
    TRANSPOSED = 2


class Mode(IntEnum):
    """What is done with the sums of a `Gemm` while they are drained."""

    INT8 = 0
    INT16 = 1
    MULTIPLY = 2
    ROTARY = 3
    SCORE = 4
    VALUE = 5


@dataclass(frozen=True)
class Tensor:
    """A place in the unified memory: first line, chunks from one block of rows to the next, first row."""

    line: int
    pitch: int
    row: int = 0


NOWHERE = Tensor(0, 0)


@dataclass(frozen=True)
class Load:
    """Outer memory → engine.

    - LINES: `count` + ((R[register] + line_rows) // line_rows) × `count_step` bus words, contiguous from `address`,
      to the line `to.line` onwards; for the other spaces to bus word `to.line` of that memory.
    - ROWS: `count` (+ R[register] where `add_count`) rows of `chunks` chunks, row i contiguous at `address` + i ×
      `row_pitch`, to rows `to.row` + i.
    - TRANSPOSED: `count` (+ R[register] where `add_count`) rows of `chunks` × depth bytes at `address` + i ×
      `row_pitch`; byte j of row i becomes byte i of row `to.row` + j. `chunks` × depth is a multiple of the bus word.

    `address` += R[register] × `address_step`. Addresses and pitches are bytes, multiples of the bus word.
    """

    address: int
    to: Tensor
    count: int
    space: Space = Space.SRAM
    pattern: Pattern = Pattern.LINES
    chunks: int = 0
    row_pitch: int = 0
    register: int = 0
    address_step: int = 0
    count_step: int = 0
    add_count: bool = False

    def words(self, line_rows: int, given: int) -> int:
        """Bus words of a LINES load where R[register] is `given`."""
        return self.count + (given + line_rows) // line_rows * self.count_step

    def rows(self, given: int) -> int:
        """Rows of any other load."""
        return self.count + given * self.add_count


@dataclass(frozen=True)
class Store:
    """Engine → outer memory.

    - LINES: `count` lines from `source.line`, contiguous, to `address`.
    - ROWS: `count` rows of `chunks` chunks; row i of the source is row j = `row` + R[register] + i there, its chunk
      k at `address` + (j // line_rows) × `block_pitch` + (j % line_rows) × `row_pitch` + k × `chunk_pitch`
      (multiples of depth).
    """

    address: int
    source: Tensor
    count: int
    pattern: Pattern = Pattern.LINES
    chunks: int = 0
    row: int = 0
    block_pitch: int = 0
    row_pitch: int = 0
    chunk_pitch: int = 0
    register: int = 0


@dataclass(frozen=True)
class Gemm:
    """`out[m, n] = post(Σ_k a[m, k] · w[n, k])`, `a` of `m` rows and `k` columns of 8 bits, `w` of `n` rows.

    With `four_bit` a chunk of `w` holds 4-bit values (low half: column c, high half: column `columns` + c of a tile
    of twice as many columns), and every `group` chunks of a column are multiplied by a 4-bit number of the group
    memory (from word `groups`, tile by tile). `parameters` is the first entry of the columns' bias, multiplier and
    shift. `register` is added to `n`, `k`, `limit` where the flag says so. `aux` and what the other fields mean:
    see the modes in `docs/accelerator.md`. `aux_period`: chunks after which `aux` starts anew (0: never).
    """

    a: Tensor
    w: Tensor
    out: Tensor
    m: int
    n: int
    k: int
    mode: Mode
    parameters: int = 0
    table: int = 0
    """1 + the table applied to 8-bit results; 0: none."""
    aux: Tensor = NOWHERE
    aux_period: int = 0
    multiplier: int = 0
    shift: int = 0
    limit: int = 0
    causal: bool = False
    four_bit: bool = False
    group: int = 0
    groups: int = 0
    register: int = 0
    add_n: bool = False
    add_k: bool = False
    add_limit: bool = False

    def sizes(self, given: int) -> tuple[int, int]:
        """`n` and `k` where R[register] is `given`."""
        return self.n + given * self.add_n, self.k + given * self.add_k


@dataclass(frozen=True)
class Norm:
    """Layer norm (`centred`) or RMS norm of `m` rows of `n` 16-bit elements; out of 8 or 16 bits (`wide`).

    `parameters`: first entry of the columns' offset (bias) and gain (multiplier, signed); `shift` is common;
    `epsilon` is added to the scaled variance (0 … 2^48 − 1).
    """

    a: Tensor
    out: Tensor
    m: int
    n: int
    parameters: int
    shift: int
    epsilon: int = 0
    centred: bool = True
    wide: bool = False


@dataclass(frozen=True)
class Add:
    """`out = a + b` of `m` rows of `n` 16-bit elements, saturating (`wide`), or requantised to 8 bits.

    Without `b` (`has_b` false) a conversion.
    """

    a: Tensor
    out: Tensor
    m: int
    n: int
    b: Tensor = NOWHERE
    has_b: bool = True
    wide: bool = True
    multiplier: int = 0
    shift: int = 0


@dataclass(frozen=True)
class Fence:
    """Waits until the named units rest."""

    load: bool = True
    store: bool = True
    compute: bool = True


@dataclass(frozen=True)
class End:
    """Waits for all units; the program is done."""


Step = Load | Store | Gemm | Norm | Add | Fence | End


@dataclass(frozen=True)
class Schedule:
    """Steps in order, for one engine. `registers` names what the host puts into R[1]…"""

    engine: IntegerEngine
    steps: tuple[Step, ...]
    registers: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)


def unit(step: Step) -> str | None:
    """Which unit does a step; none for `Fence` and `End`, which the sequencer does itself."""
    if isinstance(step, Load):
        return "load"
    if isinstance(step, Store):
        return "store"
    return "compute" if isinstance(step, Gemm | Norm | Add) else None


def names(step: type[Step]) -> list[str]:
    """A step's fields, in order."""
    return [field.name for field in fields(step)]
