"""Tables of the RTL that are numbers of the golden arithmetic, written as Verilog."""

from gossamer.accelerator.golden.arithmetic import EXPONENTIALS, OCTAVE_BITS


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
