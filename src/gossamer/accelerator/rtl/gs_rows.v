// Rows of a step in groups that the unit treats at once: at most NORM_ROWS, never across a line of any of the three tensors.
// A tensor's rows follow each other through a line, then go on `pitch` lines further. Sequential; outputs hold until next_i.
`default_nettype none

module gs_rows #(
    parameter LINE_ROWS = 16,
    parameter NORM_ROWS = 8
) (
    input  wire        clk_i,
    input  wire        start_i,
    input  wire        next_i,
    input  wire [15:0] m_i,
    input  wire [23:0] a_line_i,
    input  wire [ 7:0] a_row_i,
    input  wire [15:0] a_pitch_i,
    input  wire [23:0] b_line_i,
    input  wire [ 7:0] b_row_i,
    input  wire [15:0] b_pitch_i,
    input  wire [23:0] o_line_i,
    input  wire [ 7:0] o_row_i,
    input  wire [15:0] o_pitch_i,
    output reg  [23:0] a_line_o,
    output reg  [ 7:0] a_row_o,
    output reg  [23:0] b_line_o,
    output reg  [ 7:0] b_row_o,
    output reg  [23:0] o_line_o,
    output reg  [ 7:0] o_row_o,
    output wire [ 7:0] count_o,  // rows of this group
    output wire        last_o    // no group comes after it
);
    function [7:0] least(input [7:0] x, input [7:0] y);
        least = x < y ? x : y;
    endfunction

    reg [15:0] left_q;
    wire [7:0] a_left = LINE_ROWS[7:0] - a_row_o;
    wire [7:0] b_left = LINE_ROWS[7:0] - b_row_o;
    wire [7:0] o_left = LINE_ROWS[7:0] - o_row_o;
    wire [7:0] fit = least(least(NORM_ROWS[7:0], a_left), least(b_left, o_left));

    assign last_o  = left_q <= {8'd0, fit};
    assign count_o = last_o ? left_q[7:0] : fit;

    always @(posedge clk_i)
        if (start_i) begin
            left_q <= m_i;
            a_line_o <= a_line_i;
            a_row_o <= a_row_i;
            b_line_o <= b_line_i;
            b_row_o <= b_row_i;
            o_line_o <= o_line_i;
            o_row_o <= o_row_i;
        end else if (next_i) begin
            left_q <= left_q - {8'd0, count_o};
            a_row_o <= count_o == a_left ? 8'd0 : a_row_o + count_o;
            b_row_o <= count_o == b_left ? 8'd0 : b_row_o + count_o;
            o_row_o <= count_o == o_left ? 8'd0 : o_row_o + count_o;
            if (count_o == a_left) a_line_o <= a_line_o + {8'd0, a_pitch_i};
            if (count_o == b_left) b_line_o <= b_line_o + {8'd0, b_pitch_i};
            if (count_o == o_left) o_line_o <= o_line_o + {8'd0, o_pitch_i};
        end
endmodule
`default_nettype wire
