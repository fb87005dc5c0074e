// In place of gs_norm, to test what surrounds it: line i of out = the LANES parameters from entry `parameters` + i · LANES,
// over and over, in even rows only; i < m.
module gs_norm #(
    parameter ROWS = 8, parameter COLUMNS = 8, parameter DEPTH = 8, parameter LANES = 4, parameter NORM_ROWS = 8,
    parameter LINE_ROWS = ROWS > COLUMNS ? ROWS : COLUMNS, parameter WIDTH = 8 * LINE_ROWS * DEPTH
) (
    input wire clk_i, input wire rst_i, input wire start_i, input wire [511:0] instruction_i,
    input wire [255:0] registers_i, output wire busy_o,
    output wire a_en_o, output wire [23:0] a_line_o, input wire [WIDTH-1:0] a_data_i,
    output wire o_en_o, output wire [23:0] o_line_o, output wire [LINE_ROWS-1:0] o_rows_o,
    output wire [WIDTH-1:0] o_data_o,
    output wire p_en_o, output wire [23:0] p_entry_o, input wire [64*LANES-1:0] p_data_i
);
  `include "gs_isa.vh"
  wire [23:0] read, write;
  reg [64*LANES-1:0] data_q;
  integer i;
  reg [WIDTH-1:0] line;
  standin_walk walk (clk_i, rst_i, start_i, {8'd0, instruction_i[NORM_M_LO+:NORM_M_W]}, p_en_o, read, o_en_o, write,
                     busy_o);
  always @(posedge clk_i) data_q <= p_data_i;
  always @* for (i = 0; i < WIDTH; i = i + 1) line[i] = data_q[i % (64 * LANES)];
  assign p_entry_o = instruction_i[NORM_PARAMETERS_LO+:24] + read * LANES;
  assign o_line_o = instruction_i[NORM_OUT_LINE_LO+:24] + write;
  assign o_rows_o = {LINE_ROWS / 2{2'b01}};
  assign o_data_o = line;
  assign {a_en_o, a_line_o} = 0;
endmodule
