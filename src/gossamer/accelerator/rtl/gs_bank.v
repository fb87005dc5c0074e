// One single-port bank of the unified memory: a line read, or some bytes of a line written, in a cycle.
// The line read appears in the next cycle and stays until the next read. SRAMs of at most 16 bytes lie side by side.
`default_nettype none
module gs_bank #(
    parameter BYTES = 64,
    parameter LINES = 1024
) (
    input  wire                     clk_i,
    input  wire                     en_i,
    input  wire                     write_i,
    input  wire [$clog2(LINES)-1:0] line_i,
    input  wire [BYTES-1:0]         bytes_i,
    input  wire [8*BYTES-1:0]       data_i,
    output wire [8*BYTES-1:0]       data_o
);
  localparam WIDTH = BYTES < 16 ? BYTES : 16;  // a line's bytes are a power of two

  genvar b;
  generate
    for (b = 0; b < BYTES; b = b + WIDTH) begin : slice
      gs_sram #(
          .BYTES(WIDTH),
          .WORDS(LINES)
      ) sram (
          .clk_i(clk_i),
          .en_i(en_i),
          .write_i(write_i),
          .word_i(line_i),
          .bytes_i(bytes_i[b+:WIDTH]),
          .data_i(data_i[8*b+:8*WIDTH]),
          .data_o(data_o[8*b+:8*WIDTH])
      );
    end
  endgenerate
endmodule
`default_nettype wire
