"""Tables of the RTL that are numbers of the golden arithmetic, written as Verilog."""

from gossamer.accelerator.golden.arithmetic import EXPONENTIALS, OCTAVE_BITS, SEEDS


def exponential() -> str:
    """`gs_exponential.v`: `EXPONENTIALS` as a case."""
    cases = "\n".join(
        f"            {OCTAVE_BITS}'d{index}: exponential_o = 8'd{value};" for index, value in enumerate(EXPONENTIALS)
    )
    return f"""\
// 255 * 2^(-i/64), rounded: golden `EXPONENTIALS`. Written by gossamer.accelerator.rtl_tables.
`default_nettype none
module gs_exponential (
    input  wire [{OCTAVE_BITS - 1}:0] index_i,
    output reg  [7:0] exponential_o
);
    always @* begin
        case (index_i)
{cases}
        endcase
    end
endmodule
`default_nettype wire
"""


def root_seeds() -> str:
    """`gs_root_seeds.v`: `SEEDS` as a case; the first is that of x / 256 = 64."""
    cases = "\n".join(f"            8'd{64 + index}: seed_o = 16'd{seed};" for index, seed in enumerate(SEEDS))
    return f"""\
// 2^23 / sqrt(x) in the middle of steps of 256, rounded: golden `SEEDS`. Written by gossamer.accelerator.rtl_tables.
`default_nettype none
module gs_root_seeds (
    input  wire [7:0]  index_i,  // x / 256, 64 or more
    output reg  [15:0] seed_o
);
    always @* begin
        case (index_i)
{cases}
            default: seed_o = 16'd0;
        endcase
    end
endmodule
`default_nettype wire
"""
