// Multiply and accumulate, signed; clear starts anew with this product. BUG sows the classic one: an unsigned product.
module mac #(parameter W = 8, parameter ACC = 24, parameter BUG = 0) (
  input clk, input rst, input en, input clear,
  input signed [W-1:0] a, input signed [W-1:0] b,
  output reg signed [ACC-1:0] acc);
  wire signed [2*W-1:0] product = a * b;
  wire [2*W-1:0] unsigned_product = {{W{1'b0}}, a} * {{W{1'b0}}, b};
  wire signed [ACC-1:0] term =
    BUG != 0 ? {{(ACC-2*W){1'b0}}, unsigned_product} : {{(ACC-2*W){product[2*W-1]}}, product};
  always @(posedge clk)
    if (rst) acc <= 0;
    else if (en) acc <= clear ? term : acc + term;
endmodule
