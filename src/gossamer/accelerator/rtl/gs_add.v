// a + b of 16-bit rows, or a alone, saturated to 16 bits or requantised to 8: NORM_ROWS rows at once, LANES elements of
// each a cycle. Numbered signals belong to the slice that left gs_slices so many cycles ago: 1 chunks come from memory,
// 2 their slices are picked, 3 added, 4 multiplied, 5 shifted, 6 rounded, 7 gathered, 8 written.
`default_nettype none

module gs_add #(
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
    output reg                          busy_o,
    output wire                         a_en_o,
    output wire [                 23:0] a_line_o,
    input  wire [8*LINE_ROWS*DEPTH-1:0] a_data_i,
    output wire                         x_en_o,
    output wire [                 23:0] x_line_o,
    input  wire [8*LINE_ROWS*DEPTH-1:0] x_data_i,
    output wire                         o_en_o,
    output wire [                 23:0] o_line_o,
    output wire [        LINE_ROWS-1:0] o_rows_o,
    output wire [8*LINE_ROWS*DEPTH-1:0] o_data_o
);
    // verilator lint_off UNUSEDPARAM
    `include "gs_isa.vh"
    // verilator lint_on UNUSEDPARAM

    localparam ELEMENTS = NORM_ROWS * LANES;

    wire has_b = instruction_i[ADD_HAS_B_LO];
    wire wide = instruction_i[ADD_WIDE_LO];
    wire [5:0] shift = instruction_i[ADD_SHIFT_LO +: 6];
    wire [15:0] m = instruction_i[ADD_M_LO +: ADD_M_W];
    wire [15:0] n = instruction_i[ADD_N_LO +: ADD_N_W];
    wire [15:0] multiplier = instruction_i[ADD_MULTIPLIER_LO +: ADD_MULTIPLIER_W];

    reg begin_q;  // a pass over a group of rows begins
    wire written, last_group;
    wire [23:0] a_line, b_line, o_line;
    wire [7:0] a_row, b_row, o_row, count;
    wire valid, first, last, read;
    wire [15:0] chunk;

    always @(posedge clk_i)
        if (rst_i) {busy_o, begin_q} <= 2'b00;
        else if (start_i) {busy_o, begin_q} <= {2{m != 16'd0 && n != 16'd0}};
        else if (written) {busy_o, begin_q} <= {2{!last_group}};
        else begin_q <= 1'b0;

    gs_rows #(.LINE_ROWS(LINE_ROWS), .NORM_ROWS(NORM_ROWS)) rows (
        .clk_i(clk_i), .start_i(start_i), .next_i(written), .m_i(m),
        .a_line_i(instruction_i[ADD_A_LINE_LO +: ADD_A_LINE_W]),
        .a_row_i(instruction_i[ADD_A_ROW_LO +: ADD_A_ROW_W]),
        .a_pitch_i(instruction_i[ADD_A_PITCH_LO +: ADD_A_PITCH_W]),
        .b_line_i(instruction_i[ADD_B_LINE_LO +: ADD_B_LINE_W]),
        // no second operand: one that never parts the rows otherwise than a
        .b_row_i(has_b ? instruction_i[ADD_B_ROW_LO +: ADD_B_ROW_W] : instruction_i[ADD_A_ROW_LO +: ADD_A_ROW_W]),
        .b_pitch_i(instruction_i[ADD_B_PITCH_LO +: ADD_B_PITCH_W]),
        .o_line_i(instruction_i[ADD_OUT_LINE_LO +: ADD_OUT_LINE_W]),
        .o_row_i(instruction_i[ADD_OUT_ROW_LO +: ADD_OUT_ROW_W]),
        .o_pitch_i(instruction_i[ADD_OUT_PITCH_LO +: ADD_OUT_PITCH_W]),
        .a_line_o(a_line), .a_row_o(a_row), .b_line_o(b_line), .b_row_o(b_row),
        .o_line_o(o_line), .o_row_o(o_row), .count_o(count), .last_o(last_group)
    );
    gs_slices #(.DEPTH(DEPTH), .LANES(LANES)) slices (
        .clk_i(clk_i), .rst_i(rst_i), .start_i(begin_q), .n_i(n),
        .valid_o(valid), .first_o(first), .last_o(last), .read_o(read), .chunk_o(chunk)
    );

    assign a_en_o = read;
    assign a_line_o = a_line + {8'd0, chunk};
    assign x_en_o = read && has_b;
    assign x_line_o = b_line + {8'd0, chunk};

    // what goes along with a slice
    reg [7:1] valid_q, first_q, last_q;
    reg read_1;
    always @(posedge clk_i) begin
        valid_q <= rst_i ? 7'd0 : {valid_q[6:1], valid};
        first_q <= {first_q[6:1], first};
        last_q <= {last_q[6:1], last};
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
    wire [16*ELEMENTS-1:0] a, b;
    gs_take #(.LINE_ROWS(LINE_ROWS), .NORM_ROWS(NORM_ROWS), .DEPTH(DEPTH), .LANES(LANES)) take_a (
        .clk_i(clk_i), .load_i(read_1), .line_i(a_data_i), .row_i(a_row),
        .take_i(valid_q[2]), .keep_i(tail | {LANES{!last_q[2]}}), .elements_o(a)
    );
    gs_take #(.LINE_ROWS(LINE_ROWS), .NORM_ROWS(NORM_ROWS), .DEPTH(DEPTH), .LANES(LANES)) take_b (
        .clk_i(clk_i), .load_i(read_1), .line_i(x_data_i), .row_i(b_row),
        .take_i(valid_q[2]), .keep_i((tail | {LANES{!last_q[2]}}) & {LANES{has_b}}), .elements_o(b)
    );

    // 3 … 6: zeros past n stay zeros
    wire [16:0] factor = wide ? 17'd1 : {1'b0, multiplier};
    wire [5:0] places = wide ? 6'd0 : shift;
    wire [16*ELEMENTS-1:0] results;
    genvar e;
    generate
        for (e = 0; e < ELEMENTS; e = e + 1) begin : adders
            wire signed [15:0] left = a[16*e +: 16];
            wire signed [15:0] right = b[16*e +: 16];
            reg signed [16:0] sum_q;
            wire [33:0] product;
            always @(posedge clk_i) sum_q <= left + right;
            gs_product #(.A(17), .B(17)) times (.clk_i(clk_i), .a_i(sum_q), .b_i(factor), .product_o(product));
            gs_shift #(.IN(34), .OUT(16)) round (
                .clk_i(clk_i), .x_i(product), .shift_i(places), .y_o(results[16*e +: 16])
            );
        end
    endgenerate

    // 7
    gs_put #(.LINE_ROWS(LINE_ROWS), .NORM_ROWS(NORM_ROWS), .DEPTH(DEPTH), .LANES(LANES)) put (
        .clk_i(clk_i), .rst_i(rst_i), .valid_i(valid_q[7]), .first_i(first_q[7]), .last_i(last_q[7]),
        .wide_i(wide), .elements_i(results), .line_i(o_line), .row_i(o_row), .count_i(count),
        .o_en_o(o_en_o), .o_line_o(o_line_o), .o_rows_o(o_rows_o), .o_data_o(o_data_o), .done_o(written)
    );

    wire unused = &{1'b0, instruction_i, registers_i};
endmodule
`default_nettype wire
