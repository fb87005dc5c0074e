"""The MLP of a block: `x + down(table(up(h)))`, or `x + down(table(gate(h)) · up(h))`."""

from gossamer.accelerator.program.draft import View
from gossamer.accelerator.program.images import MlpImages
from gossamer.accelerator.program.products import Work, load_table, product
from gossamer.dataflow.schedule import Mode


def mlp(work: Work, name: str, h: View, x: View, m: int, images: MlpImages) -> View:
    """`x` (16 bits, m rows) plus the MLP of `h` (8 bits), a band of rows after the other."""
    draft, given = work.draft, images.mlp
    table = load_table(work, f"{name} table", images.table)
    out = draft.tensor(f"{name} out", m, images.down.n, 16)
    for first in range(0, m, work.band):
        rows = min(work.band, m - first)
        band = h.at_row(first)
        hidden = draft.tensor(f"{name} hidden", rows, images.up.n)
        if images.gate is None:
            product(work, band, rows, images.up, Mode.INT8, hidden, table=table)
        else:
            gate = draft.tensor(f"{name} gate", rows, images.gate.n)
            product(work, band, rows, images.gate, Mode.INT8, gate, table=table)
            product(
                work, band, rows, images.up, Mode.MULTIPLY, hidden,
                aux=gate, multiplier=given.multiplier, shift=given.shift,
            )  # fmt: skip
        product(work, hidden, rows, images.down, Mode.INT16, out.at_row(first), aux=x.at_row(first))
    return out
