// Elements out of lines: NORM_ROWS rows from row_i on, LANES 16-bit elements of each a cycle, zero where tail_i masks them.
// A chunk is kept while its slices are taken, so that the memory is read once a chunk. Two cycles from line to elements.
`default_nettype none

module gs_take #(
    parameter LINE_ROWS = 16,
    parameter NORM_ROWS = 8,
    parameter DEPTH     = 8,
    parameter LANES     = 4
) (
    input  wire                            clk_i,
    input  wire                            load_i,      // line_i holds a new chunk
    input  wire [8*LINE_ROWS*DEPTH-1:0]    line_i,
    input  wire [                     7:0] row_i,
    input  wire                            take_i,      // in the cycle after load_i and later: the chunk's next slice
    input  wire [               LANES-1:0] keep_i,      // with take_i: elements that count
    output reg  [16*NORM_ROWS*LANES-1:0]   elements_o   // row r, lane q: bits 16·(r·LANES + q)
);
    localparam SLICES = DEPTH / (2 * LANES);
    localparam ROW = 8 * DEPTH;
    localparam SLICE = 16 * LANES;

    reg [NORM_ROWS*ROW-1:0] chunks_q;
    reg [5:0] slot_q;

    always @(posedge clk_i)
        if (load_i) slot_q <= 6'd0;
        else if (take_i) slot_q <= slot_q + 6'd1;

    genvar r, q;
    generate
        for (r = 0; r < NORM_ROWS; r = r + 1) begin : rows
            wire [31:0] from = ({24'd0, row_i} + r) & (LINE_ROWS - 1);
            wire [ROW-1:0] chunk = chunks_q[r*ROW +: ROW];
            wire [SLICE-1:0] slice;
            always @(posedge clk_i) if (load_i) chunks_q[r*ROW +: ROW] <= line_i[from*ROW +: ROW];
            if (SLICES == 1) begin : whole
                assign slice = chunk;
            end else begin : part
                assign slice = chunk[{26'd0, slot_q}*SLICE +: SLICE];
            end
            for (q = 0; q < LANES; q = q + 1) begin : lanes
                always @(posedge clk_i)
                    elements_o[16*(r*LANES+q) +: 16] <= keep_i[q] ? slice[16*q +: 16] : 16'd0;
            end
        end
    endgenerate
endmodule
`default_nettype wire
