// Products and what follows them: the Gemm step. Two walks: gs_issue reads a and w, a chunk a cycle, into the array; gs_drain
// takes the sums of whole tiles through gs_post, a window of LANES columns a cycle, while the next tile is computed. Both
// run without a stall once begun; everything that belongs to a chunk or window travels with it in shift registers.
//
// Stages of a chunk:  0 read, 1 data, 2 settled, 3 products, 4 added.
// Stages of a window: 0 shifted out, 1 parameters, 3 aux read, 4 aux, 10 results (SCORE: DEPTH / LANES + 11), then written.
`default_nettype none
module gs_gemm #(
    parameter ROWS      = 8,
    parameter COLUMNS   = 8,
    parameter DEPTH     = 8,
    parameter LANES     = 4,
    parameter FOUR_BIT  = 1,
    parameter BUS_BYTES = 16,
    parameter GROUPS    = 1024,
    parameter TABLES    = 4,
    parameter CHUNKS    = 256,
    parameter LINE_ROWS = (ROWS > COLUMNS) ? ROWS : COLUMNS
) (
    input  wire                         clk_i,
    input  wire                         rst_i,
    input  wire                         start_i,
    input  wire [511:0]                 instruction_i,
    input  wire [255:0]                 registers_i,
    output reg                          busy_o,
    output wire                         a_en_o,
    output wire [23:0]                  a_line_o,
    input  wire [8*LINE_ROWS*DEPTH-1:0] a_data_i,
    output wire                         w_en_o,
    output wire [23:0]                  w_line_o,
    input  wire [8*LINE_ROWS*DEPTH-1:0] w_data_i,
    output wire                         x_en_o,
    output wire [23:0]                  x_line_o,
    input  wire [8*LINE_ROWS*DEPTH-1:0] x_data_i,
    output reg                          o_en_o,
    output reg  [23:0]                  o_line_o,
    output wire [LINE_ROWS-1:0]         o_rows_o,
    output wire [8*LINE_ROWS*DEPTH-1:0] o_data_o,
    output wire                         p_en_o,
    output wire [23:0]                  p_entry_o,
    input  wire [64*LANES-1:0]          p_data_i,
    input  wire                         m_en_i,
    input  wire [2:0]                   m_space_i,
    input  wire [31:0]                  m_word_i,
    input  wire [8*BUS_BYTES-1:0]       m_data_i
);
    /* verilator lint_off UNUSEDPARAM */
    `include "gs_isa.vh"
    /* verilator lint_on UNUSEDPARAM */
    localparam ROW = 8 * DEPTH;
    localparam DIVIDER = 18;
    localparam RESULT = 10;
    localparam SCORED = DEPTH / LANES + 11;
    localparam CHUNK_BITS = $clog2(CHUNKS);
    localparam TILES = 32;  // row tiles of a SCORE, at most
    localparam TILE_BITS = $clog2(TILES);
    localparam [31:0] STEP = LANES[31:0];
    localparam signed [32:0] MOST_OPEN = {1'b0, LANES[31:0]};
    localparam signed [32:0] LEAST_OPEN = -64;

    // ---- the step
    wire [2:0] mode = instruction_i[GEMM_MODE_LO +: GEMM_MODE_W];
    wire wide = mode == MODE_INT16[2:0];
    wire multiply = mode == MODE_MULTIPLY[2:0];
    wire rotary = mode == MODE_ROTARY[2:0];
    wire score = mode == MODE_SCORE[2:0];
    wire value = mode == MODE_VALUE[2:0];
    wire four_bit = instruction_i[GEMM_FOUR_BIT_LO];
    wire causal = instruction_i[GEMM_CAUSAL_LO];
    wire [4:0] look_up = (mode == MODE_INT8[2:0]) ? instruction_i[GEMM_TABLE_LO +: GEMM_TABLE_W] : 5'd0;
    wire [15:0] m = instruction_i[GEMM_M_LO +: GEMM_M_W];
    wire [15:0] a_pitch = instruction_i[GEMM_A_PITCH_LO +: GEMM_A_PITCH_W];
    wire [15:0] w_pitch = instruction_i[GEMM_W_PITCH_LO +: GEMM_W_PITCH_W];
    wire [15:0] x_pitch = instruction_i[GEMM_AUX_PITCH_LO +: GEMM_AUX_PITCH_W];
    wire [15:0] o_pitch = instruction_i[GEMM_OUT_PITCH_LO +: GEMM_OUT_PITCH_W];
    wire [15:0] period = instruction_i[GEMM_AUX_PERIOD_LO +: GEMM_AUX_PERIOD_W];
    wire [15:0] multiplier = instruction_i[GEMM_MULTIPLIER_LO +: GEMM_MULTIPLIER_W];
    wire [5:0] shift = instruction_i[GEMM_SHIFT_LO +: 6];
    wire aux = multiply || rotary || (wide && x_pitch != 16'd0);

    wire setup;
    wire [23:0] chunks, tiles, a_first, w_first, x_placed, o_first;
    wire [7:0] windows, last_windows, a_row, w_row, x_row_placed, o_row;
    wire [5:0] chunk_windows;
    wire [31:0] limit;
    // without aux its rows must not cut row tiles: they follow those of out
    wire [23:0] x_first = aux ? x_placed : o_first;
    wire [7:0] x_row = aux ? x_row_placed : o_row;

    gs_plan #(.ROWS(ROWS), .COLUMNS(COLUMNS), .DEPTH(DEPTH), .LANES(LANES)) plan (
        .clk_i(clk_i), .rst_i(rst_i), .start_i(start_i), .instruction_i(instruction_i), .registers_i(registers_i),
        .setup_o(setup), .chunks_o(chunks), .tiles_o(tiles), .windows_o(windows), .last_windows_o(last_windows),
        .chunk_windows_o(chunk_windows), .limit_o(limit), .a_line_o(a_first), .a_row_o(a_row), .w_line_o(w_first),
        .w_row_o(w_row), .x_line_o(x_placed), .x_row_o(x_row_placed), .o_line_o(o_first), .o_row_o(o_row)
    );

    // ---- chunks: reads, and what travels with them
    wire issue, first_chunk, last_chunk, row_issued;
    /* verilator lint_off UNUSEDSIGNAL */
    wire [23:0] chunk;
    /* verilator lint_on UNUSEDSIGNAL */
    wire [7:0] a_slot, w_slot;
    wire [15:0] group;
    reg [4:1] added_q, first_q, last_q;
    reg [7:0] a_slot_q, w_slot_q;

    gs_issue #(.ROWS(ROWS), .COLUMNS(COLUMNS), .DIVIDER(DIVIDER)) issuer (
        .clk_i(clk_i), .rst_i(rst_i), .setup_i(setup), .divide_i(value), .chunks_i(chunks), .tiles_i(tiles),
        .windows_i(windows), .last_windows_i(last_windows), .m_i(m),
        .a_line_i(a_first), .a_row_i(a_row), .a_pitch_i(a_pitch), .w_line_i(w_first), .w_row_i(w_row),
        .w_pitch_i(w_pitch), .x_line_i(x_first), .x_row_i(x_row), .o_line_i(o_first), .o_row_i(o_row),
        .group_i(instruction_i[GEMM_GROUP_LO +: GEMM_GROUP_W]), .groups_i(instruction_i[GEMM_GROUPS_LO +: GEMM_GROUPS_W]),
        .issue_o(issue), .first_o(first_chunk), .last_o(last_chunk), .row_end_o(row_issued), .a_line_o(a_line_o), .a_row_o(a_slot),
        .w_line_o(w_line_o), .w_row_o(w_slot), .chunk_o(chunk), .group_o(group)
    );
    assign a_en_o = issue;
    assign w_en_o = issue;
    wire whole = added_q[4] && last_q[4];

    always @(posedge clk_i) begin
        added_q  <= rst_i ? 4'd0 : {added_q[3:1], issue};
        first_q  <= {first_q[3:1], first_chunk};
        last_q   <= {last_q[3:1], last_chunk};
        a_slot_q <= a_slot;
        w_slot_q <= w_slot;
    end

    // ---- operands
    /* verilator lint_off UNUSEDSIGNAL */
    wire [8*LINE_ROWS*DEPTH-1:0] a_moved = a_data_i >> (ROW * a_slot_q);
    wire [8*LINE_ROWS*DEPTH-1:0] w_moved = w_data_i >> (ROW * w_slot_q);
    /* verilator lint_on UNUSEDSIGNAL */
    wire [9*DEPTH*ROWS-1:0] a;
    reg [ROW*COLUMNS-1:0] w1_q, w2_q;
    wire [10*ROWS-1:0] octaves, final_octaves, last_octaves;
    wire [31*ROWS-1:0] totals;
    reg [CHUNK_BITS-1:0] scored_q, settled_q;  // chunks of scores: written, and of the row tiles before in VALUE
    reg [TILE_BITS-1:0] scored_tile_q, settled_tile_q;
    wire scored, scored_tile;
    wire [8*COLUMNS-1:0] scale;

    always @(posedge clk_i) begin
        w1_q <= w_moved[ROW*COLUMNS-1:0];
        w2_q <= w1_q;
        scored_q <= setup ? {CHUNK_BITS{1'b0}} : scored_q + {{(CHUNK_BITS - 1){1'b0}}, scored};
        scored_tile_q <= setup ? {TILE_BITS{1'b0}} : scored_tile_q + {{(TILE_BITS - 1){1'b0}}, scored_tile};
        if (setup) begin
            settled_q <= {CHUNK_BITS{1'b0}};
            settled_tile_q <= {TILE_BITS{1'b0}};
        end else if (row_issued) begin
            settled_q <= settled_q + chunks[CHUNK_BITS-1:0];
            settled_tile_q <= settled_tile_q + {{(TILE_BITS - 1){1'b0}}, 1'b1};
        end
    end

    gs_octaves #(.ROWS(ROWS), .CHUNKS(CHUNKS)) octave_memory (
        .clk_i(clk_i), .write_i(scored), .write_chunk_i(scored_q), .data_i(last_octaves), .read_i(issue && value),
        .read_chunk_i(settled_q + chunk[CHUNK_BITS-1:0]), .data_o(octaves)
    );
    gs_octaves #(.ROWS(ROWS), .CHUNKS(TILES)) final_memory (
        .clk_i(clk_i), .write_i(scored_tile), .write_chunk_i(scored_tile_q), .data_i(last_octaves),
        .read_i(issue && value), .read_chunk_i(settled_tile_q), .data_o(final_octaves)
    );

    generate
        if (FOUR_BIT != 0) begin : g_groups
            reg [15:0] group1_q, group2_q;
            wire [8*COLUMNS-1:0] numbers;
            reg [8*COLUMNS-1:0] scale_q;
            gs_side #(.BYTES(GROUPS * COLUMNS), .WRITE_BYTES(BUS_BYTES), .READ_BYTES(COLUMNS)) groups (
                .clk_i(clk_i), .write_i(m_en_i && m_space_i == SPACE_GROUPS[2:0]), .write_word_i(m_word_i),
                .write_data_i(m_data_i), .read_i(added_q[2] && four_bit), .read_word_i({16'd0, group2_q}),
                .read_data_o(numbers)
            );
            always @(posedge clk_i) begin
                group1_q <= group;
                group2_q <= group1_q;
                scale_q  <= four_bit ? numbers : {COLUMNS{8'h11}};
            end
            assign scale = scale_q;
        end else begin : g_none
            /* verilator lint_off UNUSEDSIGNAL */
            wire unused = &{1'b0, group};
            /* verilator lint_on UNUSEDSIGNAL */
            assign scale = {COLUMNS{8'h11}};
        end
    endgenerate

    // ---- sums
    wire drain, first_window, last_window, row_end, odd;
    wire [32*LANES*ROWS-1:0] sums;
    reg divide_q;  // a row tile's first tile is whole, and so are its rows' sums
    wire fresh;

    gs_array #(.ROWS(ROWS), .COLUMNS(COLUMNS), .DEPTH(DEPTH), .LANES(LANES), .FOUR_BIT(FOUR_BIT)) array (
        .clk_i(clk_i), .a_i(a), .w_i(w2_q), .four_bit_i(four_bit), .add_i(added_q[4]), .first_i(first_q[4]),
        .last_i(last_q[4]), .scale_i(scale), .drain_i(drain), .sums_o(sums)
    );

    gs_drain #(.LANES(LANES), .DIVIDER(DIVIDER)) drainer (
        .clk_i(clk_i), .rst_i(rst_i), .setup_i(setup), .divide_i(value), .tiles_i(tiles), .windows_i(windows),
        .last_windows_i(last_windows), .chunk_windows_i(chunk_windows),
        .parameters_i(instruction_i[GEMM_PARAMETERS_LO +: GEMM_PARAMETERS_W]), .whole_i(whole), .fresh_o(fresh), .drain_o(drain),
        .first_o(first_window), .last_o(last_window), .row_end_o(row_end), .odd_o(odd), .entry_o(p_entry_o)
    );
    assign p_en_o = drain && !score && !value;

    // ---- windows: what travels with them
    reg done_q;
    /* verilator lint_off UNUSEDSIGNAL */
    reg [SCORED:1] drained_q, begun_q, ended_q, row_ended_q;
    /* verilator lint_on UNUSEDSIGNAL */
    reg [6:1] odd_q;
    reg start_q;  // a row tile begins
    wire aux_first = drained_q[3] && begun_q[3];
    wire aux_last = drained_q[3] && ended_q[3];
    wire result = score ? drained_q[SCORED] && ended_q[SCORED] : drained_q[RESULT] && ended_q[RESULT];
    wire result_row_end = score ? row_ended_q[SCORED] : row_ended_q[RESULT];
    assign scored = score && drained_q[9] && ended_q[9];
    assign scored_tile = scored && row_ended_q[9];

    always @(posedge clk_i) begin
        drained_q   <= (rst_i || done_q) ? {SCORED{1'b0}} : {drained_q[SCORED-1:1], drain};
        begun_q     <= {begun_q[SCORED-1:1], first_window};
        ended_q     <= {ended_q[SCORED-1:1], last_window};
        row_ended_q <= {row_ended_q[SCORED-1:1], row_end};
        odd_q       <= {odd_q[5:1], odd};
        divide_q    <= whole && fresh && value;
        if (setup) start_q <= 1'b1;
        else if (drained_q[8] && ended_q[8]) start_q <= row_ended_q[8];
    end

    // ---- aux
    wire [23:0] x_base;
    wire [7:0] x_slot;
    reg [7:0] x_slot_q;
    reg [23:0] x_chunk_q;
    wire x_restart = row_ended_q[3] || (period != 16'd0 && x_chunk_q + 24'd1 == {8'd0, period});
    /* verilator lint_off UNUSEDSIGNAL */
    wire [8*LINE_ROWS*DEPTH-1:0] x_moved = x_data_i >> (ROW * x_slot_q);
    /* verilator lint_on UNUSEDSIGNAL */
    assign x_en_o = aux && aux_first;
    assign x_line_o = x_base + x_chunk_q;

    /* verilator lint_off PINCONNECTEMPTY */
    gs_rows #(.LINE_ROWS(LINE_ROWS), .NORM_ROWS(ROWS)) x_rows (
        .clk_i(clk_i), .start_i(setup), .next_i(aux_last && row_ended_q[3]), .m_i(m),
        .a_line_i(a_first), .a_row_i(a_row), .a_pitch_i(16'd0),
        .b_line_i(x_first), .b_row_i(x_row), .b_pitch_i(x_pitch),
        .o_line_i(o_first), .o_row_i(o_row), .o_pitch_i(16'd0),
        .a_line_o(), .a_row_o(), .b_line_o(x_base), .b_row_o(x_slot), .o_line_o(), .o_row_o(), .count_o(), .last_o()
    );
    /* verilator lint_on PINCONNECTEMPTY */

    always @(posedge clk_i) begin
        x_slot_q <= x_slot;
        if (setup) x_chunk_q <= 24'd0;
        else if (aux_last) x_chunk_q <= x_restart ? 24'd0 : x_chunk_q + 24'd1;
    end

    // ---- valid scores
    reg [31:0] column_q;
    reg [7:0] open_q;
    wire signed [32:0] open = {limit[31], limit} - {1'b0, column_q};
    /* verilator lint_off UNUSEDSIGNAL */
    wire [32:0] clipped = (open > MOST_OPEN) ? MOST_OPEN : (open < LEAST_OPEN) ? LEAST_OPEN : open;
    /* verilator lint_on UNUSEDSIGNAL */

    always @(posedge clk_i) begin
        if (setup) column_q <= 32'd0;
        else if (drained_q[4]) column_q <= row_ended_q[4] ? 32'd0 : column_q + STEP;
        open_q <= clipped[7:0];
    end

    // ---- rows
    wire [ROW*ROWS-1:0] results;
    genvar r;
    generate
        for (r = 0; r < ROWS; r = r + 1) begin : g_row
            localparam [7:0] INDEX = r;
            wire [15:0] inverse;
            wire [4:0] place;
            gs_feed #(.DEPTH(DEPTH)) feed (
                .clk_i(clk_i), .settle_i(value), .bytes_i(a_moved[ROW*r +: ROW]), .octave_i(octaves[10*r +: 10]),
                .last_octave_i(final_octaves[10*r +: 10]), .add_i(added_q[4]), .first_i(first_q[4]),
                .a_o(a[9*DEPTH*r +: 9*DEPTH]), .total_o(totals[31*r +: 31])
            );
            gs_reciprocal reciprocal (
                .clk_i(clk_i), .start_i(divide_q), .total_i(totals[31*r +: 31]), .inverse_o(inverse), .place_o(place)
            );
            gs_post #(.DEPTH(DEPTH), .LANES(LANES), .TABLES(TABLES), .BUS_BYTES(BUS_BYTES)) post (
                .clk_i(clk_i), .wide_i(wide), .multiply_i(multiply), .rotary_i(rotary), .score_i(score), .value_i(value),
                .aux_i(aux), .multiplier_i(multiplier), .shift_i(shift), .table_i(look_up), .inverse_i(inverse),
                .place_i(place), .write_i(m_en_i && m_space_i == SPACE_TABLES[2:0]), .word_i(m_word_i), .data_i(m_data_i),
                .sums_i(sums[32*LANES*r +: 32*LANES]), .entries_i(p_data_i),
                .load_i(drained_q[4] && begun_q[4]), .x_i(x_moved[ROW*r +: ROW]),
                .open_i(causal ? open_q + INDEX : open_q), .odd_i(odd_q[6]), .first_i(begun_q[7]),
                .last_i(drained_q[8] && ended_q[8]), .start_i(start_q), .octave_o(last_octaves[10*r +: 10]), .chunk_o(results[ROW*r +: ROW])
            );
        end
    endgenerate

    // ---- writes
    wire [23:0] o_base;
    wire [7:0] o_slot, o_count;
    wire o_rows_last;
    reg [23:0] o_chunk_q;
    reg [7:0] o_slot_q, o_count_q;

    /* verilator lint_off PINCONNECTEMPTY */
    gs_rows #(.LINE_ROWS(LINE_ROWS), .NORM_ROWS(ROWS)) o_rows (
        .clk_i(clk_i), .start_i(setup), .next_i(result && result_row_end), .m_i(m),
        .a_line_i(a_first), .a_row_i(a_row), .a_pitch_i(16'd0),
        .b_line_i(x_first), .b_row_i(x_row), .b_pitch_i(16'd0),
        .o_line_i(o_first), .o_row_i(o_row), .o_pitch_i(o_pitch),
        .a_line_o(), .a_row_o(), .b_line_o(), .b_row_o(), .o_line_o(o_base), .o_row_o(o_slot), .count_o(o_count),
        .last_o(o_rows_last)
    );
    /* verilator lint_on PINCONNECTEMPTY */

    always @(posedge clk_i) begin
        o_en_o    <= result && !rst_i;
        o_line_o  <= o_base + o_chunk_q;
        o_slot_q  <= o_slot;
        o_count_q <= o_count;
        done_q    <= result && result_row_end && o_rows_last;
        if (setup) o_chunk_q <= 24'd0;
        else if (result) o_chunk_q <= result_row_end ? 24'd0 : o_chunk_q + 24'd1;

        if (rst_i) busy_o <= 1'b0;
        else if (start_i) busy_o <= 1'b1;
        else if (done_q) busy_o <= 1'b0;
    end
    assign o_rows_o = ~({LINE_ROWS{1'b1}} << o_count_q) << o_slot_q;
    generate
        if (LINE_ROWS > ROWS) begin : g_padded
            assign o_data_o = {{(ROW * (LINE_ROWS - ROWS)){1'b0}}, results} << (ROW * o_slot_q);
        end else begin : g_full
            assign o_data_o = results << (ROW * o_slot_q);
        end
    endgenerate
endmodule
`default_nettype wire
