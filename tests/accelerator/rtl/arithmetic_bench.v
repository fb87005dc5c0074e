// The arithmetic below gs_gemm, side by side, so that one compiled model tests all of it.
`default_nettype none
module arithmetic_bench (
    input  wire         clk_i,
    input  wire [32:0]  x_i,
    input  wire [15:0]  multiplier_i,
    input  wire [5:0]   shift_i,
    output wire [23:0]  y24_o,
    output wire [15:0]  y16_o,
    output wire [3:0]   y4_o,
    input  wire         divide_i,
    input  wire [30:0]  total_i,
    output wire [15:0]  inverse_o,
    output wire [4:0]   place_o,
    input  wire [5:0]   index_i,
    output wire [7:0]   exponential_o,
    input  wire         score_i,      // a row of 8-bit results: SCORE, otherwise ROTARY
    input  wire         start_i,
    input  wire [63:0]  sums_i,
    input  wire         load_i,
    input  wire [63:0]  turns_i,
    input  wire [7:0]   open_i,
    input  wire         first_i,
    input  wire         last_i,
    output wire [9:0]   octave_o,
    output wire [63:0]  chunk_o
);
    gs_requant #(.IN(33), .OUT(24)) wide (
        .clk_i(clk_i), .x_i(x_i), .multiplier_i(multiplier_i), .shift_i(shift_i), .y_o(y24_o)
    );
    gs_shift #(.IN(33), .OUT(16)) shift (.clk_i(clk_i), .x_i(x_i), .shift_i(shift_i), .y_o(y16_o));
    gs_requant #(.IN(8), .OUT(4)) tiny (
        .clk_i(clk_i), .x_i(x_i[7:0]), .multiplier_i(multiplier_i), .shift_i(shift_i), .y_o(y4_o)
    );
    gs_reciprocal reciprocal (
        .clk_i(clk_i), .start_i(divide_i), .total_i(total_i), .inverse_o(inverse_o), .place_o(place_o)
    );
    gs_exponential exponential (.index_i(index_i), .exponential_o(exponential_o));
    gs_post #(.DEPTH(8), .LANES(2), .TABLES(1), .BUS_BYTES(16)) post (
        .clk_i(clk_i), .wide_i(1'b0), .multiply_i(1'b0), .rotary_i(!score_i), .score_i(score_i), .value_i(1'b0),
        .aux_i(1'b1), .multiplier_i(multiplier_i), .shift_i(shift_i), .table_i(5'd0), .inverse_i(16'd0), .place_i(5'd0),
        .write_i(1'b0), .word_i(32'd0), .data_i(128'd0), .start_i(start_i), .sums_i(sums_i),
        .entries_i({2{32'h00000001, 32'd0}}), .load_i(load_i), .x_i(turns_i), .open_i(open_i), .odd_i(1'b0),
        .first_i(first_i), .last_i(last_i), .octave_o(octave_o), .chunk_o(chunk_o)
    );
endmodule
`default_nettype wire
