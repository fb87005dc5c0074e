// Fills the queue past its end and empties it: every word must come out in its turn.
`timescale 1ns/1ps
module fifo_tb #(parameter AW = 2, parameter BUG = 0);
  localparam DEPTH = 1 << AW;
  reg clk, rst, push, pop;
  reg [7:0] din;
  wire [7:0] dout;
  wire full, empty;
  wire [AW:0] count;
  integer i, wrong;
  fifo #(.AW(AW), .BUG(BUG)) dut (.clk(clk), .rst(rst), .push(push), .din(din), .full(full), .pop(pop), .dout(dout),
                                  .empty(empty), .count(count));
  initial clk = 0;
  always #5 clk = ~clk;
  initial begin
    wrong = 0; rst = 1; push = 0; pop = 0; din = 0;
    @(negedge clk) rst = 0;
    push = 1;
    for (i = 0; i <= DEPTH; i = i + 1) begin
      din = i;
      @(negedge clk);
    end
    push = 0; pop = 1;
    for (i = 0; i < DEPTH; i = i + 1) begin
      if (dout !== i) begin
        $display("word %0d is %0d", i, dout);
        wrong = wrong + 1;
      end
      @(negedge clk);
    end
    $display("%0d of %0d words are wrong", wrong, DEPTH);
    if (wrong != 0) $fatal(1, "the queue lost words");
    $finish;
  end
endmodule
