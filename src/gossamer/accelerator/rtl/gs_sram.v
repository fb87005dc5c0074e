// A single-port memory, a word read or some bytes of one written in a cycle: what a macro takes the place of on silicon.
// The word read appears in the next cycle and stays until the next read.
`default_nettype none
module gs_sram #(
    parameter BYTES = 16,
    parameter WORDS = 1024
) (
    input  wire                     clk_i,
    input  wire                     en_i,
    input  wire                     write_i,
    input  wire [$clog2(WORDS)-1:0] word_i,
    input  wire [BYTES-1:0]         bytes_i,
    input  wire [8*BYTES-1:0]       data_i,
    output wire [8*BYTES-1:0]       data_o
);
  reg [8*BYTES-1:0] mem[0:WORDS-1];
  reg [8*BYTES-1:0] data_q;
  integer i;

`ifndef SYNTHESIS
`ifndef FORMAL
`ifndef VERILATOR
  // Nothing is written into rows that fill up a tile. What stands there is multiplied by zero, which simulators that know
  // the state X do not take for zero.
  integer word;
  initial for (word = 0; word < WORDS; word = word + 1) mem[word] = {(BYTES / 4 + 1) {$random}};
`endif
`endif
`endif

  always @(posedge clk_i)
    if (en_i) begin
      if (write_i) begin
        for (i = 0; i < BYTES; i = i + 1) if (bytes_i[i]) mem[word_i][8*i+:8] <= data_i[8*i+:8];
      end else data_q <= mem[word_i];
    end

  assign data_o = data_q;
endmodule
`default_nettype wire
