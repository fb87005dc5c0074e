// A memory with one write port (lanes of a word) and one read port (a whole word in the next cycle).
`default_nettype none
module gs_dual #(
    parameter LANE_BYTES = 8,
    parameter LANES = 2,
    parameter WORDS = 64
) (
    input  wire                          clk_i,
    input  wire [LANES-1:0]              write_i,
    input  wire [$clog2(WORDS)-1:0]      write_word_i,
    input  wire [8*LANE_BYTES*LANES-1:0] write_data_i,
    input  wire                          read_i,
    input  wire [$clog2(WORDS)-1:0]      read_word_i,
    output wire [8*LANE_BYTES*LANES-1:0] read_data_o
);
  localparam LANE = 8 * LANE_BYTES;
  reg [LANE*LANES-1:0] mem[0:WORDS-1];
  reg [LANE*LANES-1:0] data_q;
  integer i;

  always @(posedge clk_i) begin
    for (i = 0; i < LANES; i = i + 1) if (write_i[i]) mem[write_word_i][LANE*i+:LANE] <= write_data_i[LANE*i+:LANE];
    if (read_i) data_q <= mem[read_word_i];
  end

  assign read_data_o = data_q;
endmodule
`default_nettype wire
