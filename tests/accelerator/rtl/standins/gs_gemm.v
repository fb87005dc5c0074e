// In place of gs_gemm, to test what surrounds it: line i of out = line i of a ^ line i of w, i < m.
module gs_gemm #(
    parameter ROWS = 8, parameter COLUMNS = 8, parameter DEPTH = 8, parameter LANES = 4, parameter FOUR_BIT = 1,
    parameter BUS_BYTES = 16, parameter GROUPS = 64, parameter TABLES = 4, parameter CHUNKS = 64,
    parameter LINE_ROWS = ROWS > COLUMNS ? ROWS : COLUMNS, parameter WIDTH = 8 * LINE_ROWS * DEPTH
) (
    input wire clk_i, input wire rst_i, input wire start_i, input wire [511:0] instruction_i,
    input wire [255:0] registers_i, output wire busy_o,
    output wire a_en_o, output wire [23:0] a_line_o, input wire [WIDTH-1:0] a_data_i,
    output wire w_en_o, output wire [23:0] w_line_o, input wire [WIDTH-1:0] w_data_i,
    output wire x_en_o, output wire [23:0] x_line_o, input wire [WIDTH-1:0] x_data_i,
    output wire o_en_o, output wire [23:0] o_line_o, output wire [LINE_ROWS-1:0] o_rows_o,
    output wire [WIDTH-1:0] o_data_o,
    output wire p_en_o, output wire [23:0] p_entry_o, input wire [64*LANES-1:0] p_data_i,
    input wire m_en_i, input wire [2:0] m_space_i, input wire [31:0] m_word_i, input wire [8*BUS_BYTES-1:0] m_data_i
);
  `include "gs_isa.vh"
  wire [23:0] read, write;
  reg [WIDTH-1:0] data_q;
  standin_walk walk (clk_i, rst_i, start_i, {8'd0, instruction_i[GEMM_M_LO+:GEMM_M_W]}, a_en_o, read, o_en_o, write,
                     busy_o);
  always @(posedge clk_i) data_q <= a_data_i ^ w_data_i;
  assign w_en_o = a_en_o;
  assign a_line_o = instruction_i[GEMM_A_LINE_LO+:24] + read;
  assign w_line_o = instruction_i[GEMM_W_LINE_LO+:24] + read;
  assign o_line_o = instruction_i[GEMM_OUT_LINE_LO+:24] + write;
  assign o_rows_o = {LINE_ROWS{1'b1}};
  assign o_data_o = data_q;
  assign {x_en_o, x_line_o, p_en_o, p_entry_o} = 0;
endmodule
