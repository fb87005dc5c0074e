// y = saturate(round half up(x / 2^shift)): golden `rounding_shift`. Two stages: shift, keeping one bit below the point; add
// that bit and saturate. What is out of range before the bit is added stays so after it.
`default_nettype none
module gs_shift #(
    parameter IN  = 49,
    parameter OUT = 24
) (
    input  wire           clk_i,
    input  wire [IN-1:0]  x_i,
    input  wire [5:0]     shift_i,
    output reg  [OUT-1:0] y_o
);
    wire signed [IN:0] twice = {x_i, 1'b0};
    reg [IN:0] moved_q;

    wire sign = moved_q[IN];
    wire fits = moved_q[IN:OUT] == {(IN - OUT + 1){sign}};
    wire highest = moved_q[OUT-1:1] == {(OUT - 1){1'b1}} && !sign;
    wire half = moved_q[0] && !highest;

    always @(posedge clk_i) begin
        moved_q <= twice >>> shift_i;
        y_o     <= fits ? moved_q[OUT:1] + {{(OUT - 1){1'b0}}, half} : {sign, {(OUT - 1){!sign}}};
    end
endmodule
`default_nettype wire
