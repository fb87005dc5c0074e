// A row of cells: one left operand, COLUMNS right ones. Drained columns move down by LANES; the high halves follow the low.
`default_nettype none
module gs_row #(
    parameter COLUMNS  = 8,
    parameter DEPTH    = 8,
    parameter LANES    = 4,
    parameter FOUR_BIT = 1
) (
    input  wire                       clk_i,
    input  wire [9*DEPTH-1:0]         a_i,
    input  wire [8*DEPTH*COLUMNS-1:0] w_i,
    input  wire                       four_bit_i,
    input  wire                       add_i,
    input  wire                       first_i,
    input  wire                       last_i,
    input  wire [8*COLUMNS-1:0]       scale_i,
    input  wire                       drain_i,
    output wire [32*LANES-1:0]        sums_o
);
    /* verilator no_inline_module */
    wire [32*(2*COLUMNS+LANES)-1:0] held;  // low columns, high columns, zeros
    assign held[32*2*COLUMNS +: 32*LANES] = {(32 * LANES) {1'b0}};
    assign sums_o = held[32*LANES-1:0];

    genvar c;
    generate
        for (c = 0; c < COLUMNS; c = c + 1) begin : g_cell
            gs_cell #(.DEPTH(DEPTH), .FOUR_BIT(FOUR_BIT)) cell_c (
                .clk_i(clk_i), .a_i(a_i), .w_i(w_i[8*DEPTH*c +: 8*DEPTH]), .four_bit_i(four_bit_i), .add_i(add_i),
                .first_i(first_i), .last_i(last_i), .scale_i(scale_i[8*c +: 8]), .drain_i(drain_i),
                .low_i(held[32*(c+LANES) +: 32]), .high_i(held[32*(COLUMNS+c+LANES) +: 32]),
                .low_o(held[32*c +: 32]), .high_o(held[32*(COLUMNS+c) +: 32])
            );
        end
    endgenerate
endmodule
`default_nettype wire
