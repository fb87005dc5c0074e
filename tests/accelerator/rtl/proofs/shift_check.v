// gs_shift says what the definition says: (x + 2^(s-1)) >> s, clamped. Two cycles later.
`default_nettype none
module shift_check #(
    parameter IN  = 37,
    parameter OUT = 16
) (
    input  wire           clk_i,
    input  wire [IN-1:0]  x_i,
    input  wire [5:0]     shift_i,
    output reg  [OUT-1:0] y_o
);
    localparam WIDE = IN + 64;
    wire signed [WIDE-1:0] x = {{64{x_i[IN-1]}}, x_i};
    wire signed [WIDE-1:0] half = shift_i == 6'd0 ? {WIDE{1'b0}} : {{(WIDE - 1){1'b0}}, 1'b1} << (shift_i - 6'd1);
    wire signed [WIDE-1:0] most = {{(WIDE - OUT + 1){1'b0}}, {(OUT - 1){1'b1}}};
    wire signed [WIDE-1:0] least = -most - 1;
    reg signed [WIDE-1:0] sum_q;

    always @(posedge clk_i) begin
        sum_q <= (x + half) >>> shift_i;
        y_o   <= sum_q > most ? most[OUT-1:0] : sum_q < least ? least[OUT-1:0] : sum_q[OUT-1:0];
    end
endmodule
`default_nettype wire
