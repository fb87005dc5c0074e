// Layer norm and RMS norm of 16-bit rows: NORM_ROWS rows at once, LANES elements of each a cycle, in two passes: the first
// sums, the second reads the rows again and writes them normalised, to 8 or 16 bits.
//
// A slice (LANES elements of all rows) goes down one pipeline in both passes; numbered signals belong to the slice that
// left gs_slices so many cycles ago. 1 the chunk comes from memory, 2 its slice is picked, 3 times itself or n, 4 summed up or
// less the sum, 5 … 9 gs_normalise, 10 gathered, 11 written.
`default_nettype none

module gs_norm #(
    parameter ROWS      = 8,
    parameter COLUMNS   = 8,
    parameter DEPTH     = 8,
    parameter LANES     = 4,
    parameter NORM_ROWS = 8,
    parameter LINE_ROWS = ROWS > COLUMNS ? ROWS : COLUMNS  // follows from the others
) (
    input  wire                         clk_i,
    input  wire                         rst_i,
    input  wire                         start_i,
    input  wire [                511:0] instruction_i,
    input  wire [                255:0] registers_i,
    output wire                         busy_o,
    output wire                         a_en_o,
    output wire [                 23:0] a_line_o,
    input  wire [8*LINE_ROWS*DEPTH-1:0] a_data_i,
    output wire                         o_en_o,
    output wire [                 23:0] o_line_o,
    output wire [        LINE_ROWS-1:0] o_rows_o,
    output wire [8*LINE_ROWS*DEPTH-1:0] o_data_o,
    output wire                         p_en_o,
    output reg  [                 23:0] p_entry_o,
    input  wire [         64*LANES-1:0] p_data_i
);
    // verilator lint_off UNUSEDPARAM
    `include "gs_isa.vh"
    // verilator lint_on UNUSEDPARAM

    localparam ELEMENTS = NORM_ROWS * LANES;
    localparam [2:0] REST = 3'd0, SUM = 3'd1, ROOT = 3'd2, WRITE = 3'd3, FINISH = 3'd4;

    wire centred = instruction_i[NORM_CENTRED_LO];
    wire wide = instruction_i[NORM_WIDE_LO];
    wire [5:0] shift = instruction_i[NORM_SHIFT_LO +: 6];
    wire [15:0] m = instruction_i[NORM_M_LO +: NORM_M_W];
    wire [15:0] n = instruction_i[NORM_N_LO +: NORM_N_W];
    wire [23:0] parameters = instruction_i[NORM_PARAMETERS_LO +: NORM_PARAMETERS_W];
    wire [47:0] epsilon = {
        instruction_i[NORM_EPSILON_HIGH_LO +: NORM_EPSILON_HIGH_W], instruction_i[NORM_EPSILON_LOW_LO +: NORM_EPSILON_LOW_W]
    };

    reg [2:0] state_q;
    reg begin_q;  // a pass begins

    wire moments_done, written;
    wire next_group = state_q == FINISH && written;
    wire last_group;
    wire [23:0] a_line, o_line;
    wire [7:0] a_row, o_row, count;
    wire [23:0] no_line;
    wire [7:0] no_row;
    wire valid, first, last, read;
    wire [15:0] chunk;

    assign busy_o = state_q != REST;

    always @(posedge clk_i) begin
        begin_q <= 1'b0;
        if (rst_i) state_q <= REST;
        else
            case (state_q)
                REST: if (start_i && m != 16'd0 && n != 16'd0) begin
                    state_q <= SUM;
                    begin_q <= 1'b1;
                end
                SUM: if (last) state_q <= ROOT;
                ROOT: if (moments_done) begin
                    state_q <= WRITE;
                    begin_q <= 1'b1;
                end
                WRITE: if (last) state_q <= FINISH;
                default: if (written) begin
                    state_q <= last_group ? REST : SUM;
                    begin_q <= !last_group;
                end
            endcase
    end

    gs_rows #(.LINE_ROWS(LINE_ROWS), .NORM_ROWS(NORM_ROWS)) rows (
        .clk_i(clk_i), .start_i(start_i), .next_i(next_group), .m_i(m),
        .a_line_i(instruction_i[NORM_A_LINE_LO +: NORM_A_LINE_W]),
        .a_row_i(instruction_i[NORM_A_ROW_LO +: NORM_A_ROW_W]),
        .a_pitch_i(instruction_i[NORM_A_PITCH_LO +: NORM_A_PITCH_W]),
        // no second operand: one that never parts the rows otherwise than a
        .b_line_i(24'd0), .b_row_i(instruction_i[NORM_A_ROW_LO +: NORM_A_ROW_W]), .b_pitch_i(16'd0),
        .o_line_i(instruction_i[NORM_OUT_LINE_LO +: NORM_OUT_LINE_W]),
        .o_row_i(instruction_i[NORM_OUT_ROW_LO +: NORM_OUT_ROW_W]),
        .o_pitch_i(instruction_i[NORM_OUT_PITCH_LO +: NORM_OUT_PITCH_W]),
        .a_line_o(a_line), .a_row_o(a_row), .b_line_o(no_line), .b_row_o(no_row),
        .o_line_o(o_line), .o_row_o(o_row), .count_o(count), .last_o(last_group)
    );
    gs_slices #(.DEPTH(DEPTH), .LANES(LANES)) slices (
        .clk_i(clk_i), .rst_i(rst_i), .start_i(begin_q), .n_i(n),
        .valid_o(valid), .first_o(first), .last_o(last), .read_o(read), .chunk_o(chunk)
    );

    assign a_en_o = read;
    assign a_line_o = a_line + {8'd0, chunk};

    // what goes along with a slice
    reg [10:1] valid_q, first_q, last_q;
    reg read_1;
    wire write_pass = state_q == WRITE || state_q == FINISH;
    always @(posedge clk_i) begin
        valid_q <= rst_i ? 10'd0 : {valid_q[9:1], valid};
        first_q <= {first_q[9:1], first};
        last_q <= {last_q[9:1], last};
        read_1 <= read;
    end

    // 1, 2
    localparam LOW = LANES - 1;
    wire [15:0] odd = n & LOW[15:0];
    wire [LANES-1:0] tail;  // elements of the last slice
    genvar q;
    generate
        for (q = 0; q < LANES; q = q + 1) begin : lanes
            localparam [15:0] HERE = q;
            assign tail[q] = odd == 16'd0 || HERE < odd;
        end
    endgenerate
    wire [16*ELEMENTS-1:0] elements;
    gs_take #(.LINE_ROWS(LINE_ROWS), .NORM_ROWS(NORM_ROWS), .DEPTH(DEPTH), .LANES(LANES)) take (
        .clk_i(clk_i), .load_i(read_1), .line_i(a_data_i), .row_i(a_row),
        .take_i(valid_q[2]), .keep_i(tail | {LANES{!last_q[2]}}), .elements_o(elements)
    );

    // 3: q · q, or q · n
    wire [33*ELEMENTS-1:0] products;
    wire [32*ELEMENTS-1:0] squares;
    genvar e;
    generate
        for (e = 0; e < ELEMENTS; e = e + 1) begin : multipliers
            wire [15:0] element = elements[16*e +: 16];
            wire [16:0] factor = write_pass ? {1'b0, n} : {element[15], element};
            gs_product #(.A(16), .B(17)) times (
                .clk_i(clk_i), .a_i(element), .b_i(factor), .product_o(products[33*e +: 33])
            );
            assign squares[32*e +: 32] = products[33*e +: 32];
        end
    endgenerate

    wire [32*NORM_ROWS-1:0] sums;
    wire [16*NORM_ROWS-1:0] roots;
    wire [5*NORM_ROWS-1:0] places;
    gs_moments #(.NORM_ROWS(NORM_ROWS), .LANES(LANES)) moments (
        .clk_i(clk_i), .rst_i(rst_i), .centred_i(centred), .n_i(n), .epsilon_i(epsilon), .count_i(count),
        .valid_i(valid_q[3] && !write_pass), .first_i(first_q[3]), .last_i(last_q[3]),
        .elements_i(elements), .squares_i(squares),
        .sums_o(sums), .roots_o(roots), .places_o(places), .done_o(moments_done)
    );

    // 5: entries are asked for, 6: they come
    reg [64*LANES-1:0] entries_q;
    assign p_en_o = valid_q[5] && write_pass;
    always @(posedge clk_i) begin
        if (begin_q) p_entry_o <= parameters;
        else if (p_en_o) p_entry_o <= p_entry_o + LANES[23:0];
        entries_q <= p_data_i;
    end

    wire [16*ELEMENTS-1:0] masked;
    generate
        for (e = 0; e < ELEMENTS; e = e + 1) begin : elementwise
            localparam ROW = e / LANES;
            localparam LANE = e % LANES;
            wire [15:0] result;
            gs_normalise normalise (
                .clk_i(clk_i), .product_i(products[33*e +: 33]), .sum_i(sums[32*ROW +: 32]),
                .root_i(roots[16*ROW +: 16]), .places_i(places[5*ROW +: 5]), .gain_i(entries_q[64*LANE + 32 +: 16]),
                .offset_i(entries_q[64*LANE +: 32]), .shift_i(shift), .result_o(result)
            );
            assign masked[16*e +: 16] = tail[LANE] || !last_q[10] ? result : 16'd0;  // 10
        end
    endgenerate
    gs_put #(.LINE_ROWS(LINE_ROWS), .NORM_ROWS(NORM_ROWS), .DEPTH(DEPTH), .LANES(LANES)) put (
        .clk_i(clk_i), .rst_i(rst_i), .valid_i(valid_q[10] && write_pass), .first_i(first_q[10]), .last_i(last_q[10]),
        .wide_i(wide), .elements_i(masked), .line_i(o_line), .row_i(o_row), .count_i(count),
        .o_en_o(o_en_o), .o_line_o(o_line_o), .o_rows_o(o_rows_o), .o_data_o(o_data_o), .done_o(written)
    );

    wire unused = &{1'b0, instruction_i, registers_i, no_line, no_row, entries_q};
endmodule
`default_nettype wire
