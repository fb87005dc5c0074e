// y = saturate(round half up(x * multiplier / 2^shift)): golden `requantise`. A stage that multiplies, and two of gs_shift.
`default_nettype none
module gs_requant #(
    parameter IN  = 33,
    parameter OUT = 24
) (
    input  wire           clk_i,
    input  wire [IN-1:0]  x_i,
    input  wire [15:0]    multiplier_i,
    input  wire [5:0]     shift_i,
    output wire [OUT-1:0] y_o
);
    wire [IN+16:0] product;
    reg [5:0] shift_q;

    gs_product #(.A(IN), .B(17)) times (
        .clk_i(clk_i), .a_i(x_i), .b_i({1'b0, multiplier_i}), .product_o(product)
    );
    gs_shift #(.IN(IN + 16), .OUT(OUT)) rest (
        .clk_i(clk_i), .x_i(product[IN+15:0]), .shift_i(shift_q), .y_o(y_o)
    );

    always @(posedge clk_i) shift_q <= shift_i;

    wire unused = &{1'b0, product[IN+16]};  // as the one below
endmodule
`default_nettype wire
