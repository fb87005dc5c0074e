// ROWS rows of cells; the right operands are shared by all of them.
`default_nettype none
module gs_array #(
    parameter ROWS     = 8,
    parameter COLUMNS  = 8,
    parameter DEPTH    = 8,
    parameter LANES    = 4,
    parameter FOUR_BIT = 1
) (
    input  wire                       clk_i,
    input  wire [9*DEPTH*ROWS-1:0]    a_i,
    input  wire [8*DEPTH*COLUMNS-1:0] w_i,
    input  wire                       four_bit_i,
    input  wire                       add_i,
    input  wire                       first_i,
    input  wire                       last_i,
    input  wire [8*COLUMNS-1:0]       scale_i,
    input  wire                       drain_i,
    output wire [32*LANES*ROWS-1:0]   sums_o
);
    genvar r;
    generate
        for (r = 0; r < ROWS; r = r + 1) begin : g_row
            gs_row #(.COLUMNS(COLUMNS), .DEPTH(DEPTH), .LANES(LANES), .FOUR_BIT(FOUR_BIT)) row (
                .clk_i(clk_i), .a_i(a_i[9*DEPTH*r +: 9*DEPTH]), .w_i(w_i), .four_bit_i(four_bit_i), .add_i(add_i),
                .first_i(first_i), .last_i(last_i), .scale_i(scale_i), .drain_i(drain_i),
                .sums_o(sums_o[32*LANES*r +: 32*LANES])
            );
        end
    endgenerate
endmodule
`default_nettype wire
