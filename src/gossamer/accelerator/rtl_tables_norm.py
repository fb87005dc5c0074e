"""The table of `gs_root` as Verilog: the golden model's seeds, so that both have one source."""

from gossamer.accelerator.golden.arithmetic import SEEDS

FIRST = 64
"""Index of the first seed: x / 2^8 of x in [2^14, 2^16)."""


def root_seeds() -> str:
    """The text of `rtl/gs_root_seeds.v`."""
    cases = "".join(f"            8'd{FIRST + i}: seed_o = 16'd{seed};\n" for i, seed in enumerate(SEEDS.tolist()))
    return f"""// 2^23 / sqrt(x) in the middle of 256 steps of x. Written by gossamer.accelerator.rtl_tables_norm.
`default_nettype none

module gs_root_seeds (
    input  wire [ 7:0] index_i,  // x / 256, {FIRST} … 255
    output reg  [15:0] seed_o
);
    always @*
        case (index_i)
{cases}            default: seed_o = 16'd0;
        endcase
endmodule
`default_nettype wire
"""
