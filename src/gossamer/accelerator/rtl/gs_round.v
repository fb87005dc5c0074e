// x / 2^shift, rounded half up, saturated to signed 16 (wide) or 8 bits. Combinational.
// ((2x >> s) + 1) >> 1 is (x + 2^(s−1)) >> s for s > 0 and x for s = 0: no term of half a step is needed.
`default_nettype none

module gs_round #(
    parameter WIDTH = 37
) (
    input  wire [WIDTH-1:0] x_i,
    input  wire [      5:0] shift_i,
    input  wire             wide_i,
    output wire [     15:0] y_o
);
    wire signed [WIDTH:0] twice = {x_i, 1'b0};
    wire signed [WIDTH:0] shifted = twice >>> shift_i;
    wire signed [WIDTH+1:0] rounded = ($signed({shifted[WIDTH], shifted}) + $signed({{WIDTH+1{1'b0}}, 1'b1})) >>> 1;
    wire sign = rounded[WIDTH+1];
    wire fits16 = rounded[WIDTH+1:15] == {WIDTH-13{sign}};
    wire fits8 = rounded[WIDTH+1:7] == {WIDTH-5{sign}};

    assign y_o = (wide_i ? fits16 : fits8) ? rounded[15:0]
               : wide_i ? {sign, {15{!sign}}} : {{9{sign}}, {7{!sign}}};
endmodule
`default_nettype wire
