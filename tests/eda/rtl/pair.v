// Two MACs, two queues of different depth, and a memory that is too large for flip-flops.
module pair #(parameter N = 3) (
  input clk, input rst, input push, input pop, input [7:0] din, output [7:0] d0, output [7:0] d1, output full,
  input signed [7:0] a, input signed [7:0] b, output signed [23:0] s0, output signed [23:0] s1,
  input we, input [6:0] wa, input [6:0] ra, input [15:0] wd, output reg [15:0] rd);
  wire f0, f1, e0, e1;
  wire [2:0] c0;
  wire [N:0] c1;
  reg [15:0] store [0:127];
  fifo #(.AW(2)) f_0 (.clk(clk), .rst(rst), .push(push), .din(din), .full(f0), .pop(pop), .dout(d0), .empty(e0), .count(c0));
  fifo #(.AW(N)) f_1 (.clk(clk), .rst(rst), .push(push), .din(din), .full(f1), .pop(pop), .dout(d1), .empty(e1), .count(c1));
  mac m_0 (.clk(clk), .rst(rst), .en(push), .clear(pop), .a(a), .b(b), .acc(s0));
  mac m_1 (.clk(clk), .rst(rst), .en(push), .clear(pop), .a(b), .b(a), .acc(s1));
  assign full = f0 | f1;
  always @(posedge clk) begin
    if (we) store[wa] <= wd;
    rd <= store[ra];
  end
endmodule
