// The parameter memory: entries of 8 bytes, written by load in bus words, read LANES entries at a time.
`default_nettype none
module gs_parameters #(
    parameter LANES = 4,
    parameter BUS_BYTES = 16,
    parameter PARAMETERS = 4096
) (
    input  wire                   clk_i,
    input  wire                   write_i,
    input  wire [31:0]            word_i,
    input  wire [8*BUS_BYTES-1:0] data_i,
    input  wire                   p_en_i,
    input  wire [23:0]            p_entry_i,
    output wire [64*LANES-1:0]    p_data_o
);
  gs_side #(
      .BYTES(8 * PARAMETERS),
      .WRITE_BYTES(BUS_BYTES),
      .READ_BYTES(8 * LANES)
  ) side (
      .clk_i(clk_i),
      .write_i(write_i),
      .write_word_i(word_i),
      .write_data_i(data_i),
      .read_i(p_en_i),
      .read_word_i({8'd0, p_entry_i} >> $clog2(LANES)),
      .read_data_o(p_data_o)
  );
endmodule
`default_nettype wire
