// Cuts `rows_i` rows of `words_i` bus words, `pitch_i` bytes apart, into AXI bursts: one address a cycle.
// A burst ends at a multiple of 2^BURST bytes (at most 4 KB) or 256 words, whichever is less: so it is never too long and
// never crosses 4 KB.
// `pitch_i` and `words_i` are held until the last address is out.
`default_nettype none
module gs_bursts #(
    parameter BUS_BYTES = 16,
    parameter BURST = 12
) (
    input  wire        clk_i,
    input  wire        rst_i,
    input  wire        start_i,
    input  wire [31:0] address_i,
    input  wire [31:0] pitch_i,
    input  wire [31:0] words_i,
    input  wire [31:0] rows_i,
    output wire        valid_o,
    output wire [31:0] address_o,
    output wire [7:0]  length_o,  // words − 1, as AXI has it
    input  wire        ready_i
);
  localparam BUS = $clog2(BUS_BYTES);
  localparam BLOCK = BURST - BUS > 8 ? 8 : BURST - BUS;

  reg active_q, valid_q;
  reg [31:0] address_q, row_q, left_q, rows_q, out_q;
  reg [7:0] length_q;

  wire [31:0] edge_words = (32'd1 << BLOCK) - {{(32 - BLOCK) {1'b0}}, address_q[BUS+:BLOCK]};
  wire last = left_q <= edge_words;
  wire [31:0] words = last ? left_q : edge_words;
  wire [7:0] length = words[7:0] - 8'd1;

  always @(posedge clk_i)
    if (rst_i) begin
      active_q <= 1'b0;
      valid_q  <= 1'b0;
    end else begin
      if (ready_i) valid_q <= 1'b0;
      if (start_i) begin
        active_q <= words_i != 0 && rows_i != 0;
        address_q <= address_i;
        row_q <= address_i;
        left_q <= words_i;
        rows_q <= rows_i;
      end else if (active_q && (!valid_q || ready_i)) begin
        valid_q  <= 1'b1;
        out_q    <= address_q;
        length_q <= length;
        if (last) begin
          address_q <= row_q + pitch_i;
          row_q <= row_q + pitch_i;
          left_q <= words_i;
          rows_q <= rows_q - 32'd1;
          active_q <= rows_q != 32'd1;
        end else begin
          address_q <= address_q + (words << BUS);
          left_q <= left_q - words;
        end
      end
    end

  assign valid_o = valid_q;
  assign address_o = out_q;
  assign length_o = length_q;
endmodule
`default_nettype wire
