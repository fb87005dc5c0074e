// Walks a Gemm's tiles and, in each, its chunks: reads a and w, one chunk of each a cycle. A tile's last chunk waits until the
// tile before it will have been drained when this one's sums are whole: that many cycles after the other's last chunk.
`default_nettype none
module gs_issue #(
    parameter ROWS    = 8,
    parameter COLUMNS = 8,
    parameter DIVIDER = 18,  // cycles that the drain of a row tile's first tile waits for reciprocals, where it does
    parameter LINE_ROWS = (ROWS > COLUMNS) ? ROWS : COLUMNS
) (
    input  wire        clk_i,
    input  wire        rst_i,
    input  wire        setup_i,
    input  wire        divide_i,
    input  wire [23:0] chunks_i,
    input  wire [23:0] tiles_i,
    input  wire [7:0]  windows_i,
    input  wire [7:0]  last_windows_i,
    input  wire [15:0] m_i,
    input  wire [23:0] a_line_i,
    input  wire [7:0]  a_row_i,
    input  wire [15:0] a_pitch_i,
    input  wire [23:0] w_line_i,
    input  wire [7:0]  w_row_i,
    input  wire [15:0] w_pitch_i,
    input  wire [23:0] x_line_i,
    input  wire [7:0]  x_row_i,
    input  wire [23:0] o_line_i,
    input  wire [7:0]  o_row_i,
    input  wire [7:0]  group_i,   // chunks of a group
    input  wire [15:0] groups_i,
    output wire        issue_o,   // reads, with what follows
    output wire        first_o,   // chunk of a tile
    output wire        last_o,
    output wire        row_end_o, // last chunk of a row tile
    output wire [23:0] a_line_o,
    output wire [7:0]  a_row_o,
    output wire [23:0] w_line_o,
    output wire [7:0]  w_row_o,
    output reg  [23:0] chunk_o,
    output reg  [15:0] group_o    // word of the group memory
);
    localparam [7:0] STEP = COLUMNS[7:0];
    localparam [7:0] LINE = LINE_ROWS[7:0];
    localparam [7:0] WAIT = DIVIDER[7:0];

    reg run_q;
    reg [23:0] tile_q, w_base_q;
    reg [7:0] w_row_q, gap_q, count_q;
    wire [23:0] a_base;
    wire rows_last;
    wire column_last = tile_q + 24'd1 >= tiles_i;
    wire [7:0] drain = (column_last ? last_windows_i : windows_i) + ((divide_i && tile_q == 24'd0) ? WAIT : 8'd0);
    wire tile_end = issue_o && last_o;
    wire [7:0] w_next = w_row_q + STEP;
    wire group_end = last_o || (group_i != 8'd0 && count_q + 8'd1 == group_i);

    assign first_o  = chunk_o == 24'd0;
    assign last_o   = chunk_o + 24'd1 >= chunks_i;
    assign issue_o  = run_q && !(last_o && gap_q != 8'd0);
    assign row_end_o = tile_end && column_last;
    assign a_line_o = a_base + chunk_o;
    assign w_line_o = w_base_q + chunk_o;
    assign w_row_o  = w_row_q;

    /* verilator lint_off PINCONNECTEMPTY */
    gs_rows #(.LINE_ROWS(LINE_ROWS), .NORM_ROWS(ROWS)) rows (
        .clk_i(clk_i), .start_i(setup_i), .next_i(row_end_o), .m_i(m_i),
        .a_line_i(a_line_i), .a_row_i(a_row_i), .a_pitch_i(a_pitch_i),
        .b_line_i(x_line_i), .b_row_i(x_row_i), .b_pitch_i(16'd0),
        .o_line_i(o_line_i), .o_row_i(o_row_i), .o_pitch_i(16'd0),
        .a_line_o(a_base), .a_row_o(a_row_o), .b_line_o(), .b_row_o(), .o_line_o(), .o_row_o(), .count_o(),
        .last_o(rows_last)
    );
    /* verilator lint_on PINCONNECTEMPTY */

    always @(posedge clk_i) begin
        if (rst_i) run_q <= 1'b0;
        else if (setup_i) run_q <= 1'b1;
        else if (row_end_o && rows_last) run_q <= 1'b0;

        if (setup_i) begin
            chunk_o <= 24'd0;
            gap_q   <= 8'd0;
            count_q <= 8'd0;
        end else begin
            if (issue_o) chunk_o <= last_o ? 24'd0 : chunk_o + 24'd1;
            if (issue_o) count_q <= group_end ? 8'd0 : count_q + 8'd1;
            if (tile_end) gap_q <= drain - 8'd1;
            else if (gap_q != 8'd0) gap_q <= gap_q - 8'd1;
        end

        if (setup_i || row_end_o) begin
            tile_q   <= 24'd0;
            w_base_q <= w_line_i;
            w_row_q  <= w_row_i;
            group_o  <= groups_i;
        end else begin
            if (issue_o && group_end) group_o <= group_o + 16'd1;
            if (tile_end) begin
                tile_q  <= tile_q + 24'd1;
                w_row_q <= (w_next == LINE) ? 8'd0 : w_next;
                if (w_next == LINE) w_base_q <= w_base_q + {8'd0, w_pitch_i};
            end
        end
    end
endmodule
`default_nettype wire
