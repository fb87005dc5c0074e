// In place of gs_add, to test what surrounds it: line i of out = line i of a ^ line i of b, i < m.
module gs_add #(
    parameter ROWS = 8, parameter COLUMNS = 8, parameter DEPTH = 8, parameter LANES = 4, parameter NORM_ROWS = 8,
    parameter LINE_ROWS = ROWS > COLUMNS ? ROWS : COLUMNS, parameter WIDTH = 8 * LINE_ROWS * DEPTH
) (
    input wire clk_i, input wire rst_i, input wire start_i, input wire [511:0] instruction_i,
    input wire [255:0] registers_i, output wire busy_o,
    output wire a_en_o, output wire [23:0] a_line_o, input wire [WIDTH-1:0] a_data_i,
    output wire x_en_o, output wire [23:0] x_line_o, input wire [WIDTH-1:0] x_data_i,
    output wire o_en_o, output wire [23:0] o_line_o, output wire [LINE_ROWS-1:0] o_rows_o,
    output wire [WIDTH-1:0] o_data_o
);
  `include "gs_isa.vh"
  wire [23:0] read, write;
  reg [WIDTH-1:0] data_q;
  standin_walk walk (clk_i, rst_i, start_i, {8'd0, instruction_i[ADD_M_LO+:ADD_M_W]}, a_en_o, read, o_en_o, write,
                     busy_o);
  always @(posedge clk_i) data_q <= a_data_i ^ x_data_i;
  assign x_en_o = a_en_o;
  assign a_line_o = instruction_i[ADD_A_LINE_LO+:24] + read;
  assign x_line_o = instruction_i[ADD_B_LINE_LO+:24] + read;
  assign o_line_o = instruction_i[ADD_OUT_LINE_LO+:24] + write;
  assign o_rows_o = {LINE_ROWS{1'b1}};
  assign o_data_o = data_q;
endmodule
