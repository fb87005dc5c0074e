// y = saturate(round half up(x * multiplier / 2^shift)): golden `requantise`. Three stages: multiply; shift, keeping one bit
// below the point; add that bit and saturate. What is out of range before the bit is added stays so after it.
`default_nettype none
module gs_requant #(
    parameter IN  = 33,
    parameter OUT = 24
) (
    input  wire           clk_i,
    input  wire [IN-1:0]  x_i,
    input  wire [15:0]    multiplier_i,
    input  wire [5:0]     shift_i,
    output reg  [OUT-1:0] y_o
);
    localparam PRODUCT = IN + 16;
    wire signed [PRODUCT-1:0] x = {{16{x_i[IN-1]}}, x_i};
    wire signed [PRODUCT-1:0] multiplier = {{IN{1'b0}}, multiplier_i};
    reg signed [PRODUCT-1:0] product_q;
    reg [5:0] shift_q;
    reg [PRODUCT:0] moved_q;
    wire signed [PRODUCT:0] wide = {product_q, 1'b0};

    wire sign = moved_q[PRODUCT];
    wire fits = moved_q[PRODUCT:OUT] == {(PRODUCT - OUT + 1){sign}};
    wire highest = moved_q[OUT-1:1] == {(OUT - 1){1'b1}} && !sign;
    wire half = moved_q[0] && !highest;

    always @(posedge clk_i) begin
        product_q <= x * multiplier;
        shift_q   <= shift_i;
        moved_q   <= wide >>> shift_q;
        y_o       <= fits ? moved_q[OUT:1] + {{(OUT - 1){1'b0}}, half} : {sign, {(OUT - 1){!sign}}};
    end
endmodule
`default_nettype wire
