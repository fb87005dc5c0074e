// A queue of 2**AW words. BUG sows one: it never says that it is full.
module fifo #(parameter W = 8, parameter AW = 2, parameter BUG = 0) (
  input clk, input rst,
  input push, input [W-1:0] din, output full,
  input pop, output [W-1:0] dout, output empty,
  output [AW:0] count);
  reg [W-1:0] mem [0:(1 << AW)-1];
  reg [AW:0] rp, wp;
  assign count = wp - rp;
  assign empty = count == 0;
  assign full = BUG == 0 && count[AW];
  assign dout = mem[rp[AW-1:0]];
  always @(posedge clk) begin
    if (push && !full) mem[wp[AW-1:0]] <= din;
    if (rst) begin
      rp <= 0;
      wp <= 0;
    end else begin
      if (push && !full) wp <= wp + 1'b1;
      if (pop && !empty) rp <= rp + 1'b1;
    end
  end
endmodule
