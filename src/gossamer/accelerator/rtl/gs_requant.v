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
    localparam PRODUCT = IN + 16;
    wire signed [PRODUCT-1:0] x = {{16{x_i[IN-1]}}, x_i};
    wire signed [PRODUCT-1:0] multiplier = {{IN{1'b0}}, multiplier_i};
    reg signed [PRODUCT-1:0] product_q;
    reg [5:0] shift_q;

    gs_shift #(.IN(PRODUCT), .OUT(OUT)) rest (.clk_i(clk_i), .x_i(product_q), .shift_i(shift_q), .y_o(y_o));

    always @(posedge clk_i) begin
        product_q <= x * multiplier;
        shift_q   <= shift_i;
    end
endmodule
`default_nettype wire
