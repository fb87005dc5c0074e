// A side memory of BYTES bytes, written in words of WRITE_BYTES, read in words of READ_BYTES (powers of two).
// Words past its end wrap. What is read appears in the next cycle and stays until the next read.
`default_nettype none
module gs_side #(
    parameter BYTES = 4096,
    parameter WRITE_BYTES = 16,
    parameter READ_BYTES = 32
) (
    input  wire                     clk_i,
    input  wire                     write_i,
    input  wire [31:0]              write_word_i,
    input  wire [8*WRITE_BYTES-1:0] write_data_i,
    input  wire                     read_i,
    input  wire [31:0]              read_word_i,
    output wire [8*READ_BYTES-1:0]  read_data_o
);
  localparam WIDTH = WRITE_BYTES > READ_BYTES ? WRITE_BYTES : READ_BYTES;
  localparam WORDS = BYTES >> $clog2(WIDTH);
  localparam ADDRESS = $clog2(WORDS);
  localparam LANES = WIDTH >> $clog2(WRITE_BYTES);
  localparam PARTS = WIDTH >> $clog2(READ_BYTES);

  wire [31:0] write_word = write_word_i >> $clog2(LANES);
  wire [31:0] read_word = read_word_i >> $clog2(PARTS);
  wire [31:0] write_lane = write_word_i & (LANES - 1);
  wire [8*WIDTH-1:0] word;
  reg [LANES-1:0] write;
  reg [31:0] part_q;
  wire unused = &{1'b0, write_word, read_word};
  integer i;

  always @* for (i = 0; i < LANES; i = i + 1) write[i] = write_i && write_lane == i;

  always @(posedge clk_i) if (read_i) part_q <= read_word_i & (PARTS - 1);

  gs_dual #(
      .LANE_BYTES(WRITE_BYTES),
      .LANES(LANES),
      .WORDS(WORDS)
  ) memory (
      .clk_i(clk_i),
      .write_i(write),
      .write_word_i(write_word[ADDRESS-1:0]),
      .write_data_i({LANES{write_data_i}}),
      .read_i(read_i),
      .read_word_i(read_word[ADDRESS-1:0]),
      .read_data_o(word)
  );

  assign read_data_o = word[8*READ_BYTES*part_q+:8*READ_BYTES];
endmodule
`default_nettype wire
