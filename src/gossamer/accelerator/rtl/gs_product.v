// A signed product, a cycle later.
`default_nettype none
module gs_product #(
    parameter A = 17,
    parameter B = 17
) (
    input  wire           clk_i,
    input  wire [A-1:0]   a_i,
    input  wire [B-1:0]   b_i,
    output reg  [A+B-1:0] product_o
);
  wire signed [A+B-1:0] a = {{B{a_i[A-1]}}, a_i};
  wire signed [A+B-1:0] b = {{A{b_i[B-1]}}, b_i};

  always @(posedge clk_i) product_o <= a * b;
endmodule
`default_nettype wire
