// V = n · squares − sum² + epsilon, a value a cycle, four cycles later. Products are made of 16-bit pieces, so that no stage
// holds more than one multiplier's delay. n · squares < 2^62 and V ≥ 0 always.
`default_nettype none

module gs_variance (
    input  wire        clk_i,
    input  wire        rst_i,
    input  wire        valid_i,
    input  wire [15:0] n_i,
    input  wire [47:0] epsilon_i,
    input  wire [31:0] sum_i,       // signed
    input  wire [45:0] squares_i,
    output wire        valid_o,
    output reg  [61:0] variance_o
);
    reg [3:0] valid_q;
    reg [31:0] sum_1;
    reg [45:0] squares_1;
    reg [31:0] low_2, middle_2, low_square_2, cross_2, high_square_2;
    reg [29:0] high_2;
    reg [61:0] mean_square_3, square_3;

    wire [31:0] n = {16'd0, n_i};

    assign valid_o = valid_q[3];

    always @(posedge clk_i) begin
        valid_q <= rst_i ? 4'd0 : {valid_q[2:0], valid_i};
        sum_1 <= sum_i[31] ? -sum_i : sum_i;
        squares_1 <= squares_i;
        low_2 <= n * {16'd0, squares_1[15:0]};
        middle_2 <= n * {16'd0, squares_1[31:16]};
        high_2 <= n[29:0] * {16'd0, squares_1[45:32]};
        low_square_2 <= {16'd0, sum_1[15:0]} * {16'd0, sum_1[15:0]};
        cross_2 <= {16'd0, sum_1[31:16]} * {16'd0, sum_1[15:0]};
        high_square_2 <= {16'd0, sum_1[31:16]} * {16'd0, sum_1[31:16]};
        mean_square_3 <= {high_2, low_2} + {14'd0, middle_2, 16'd0} + {14'd0, epsilon_i};
        square_3 <= {high_square_2[29:0], low_square_2} + {13'd0, cross_2, 17'd0};
        variance_o <= mean_square_3 - square_3;
    end

    wire unused = &{1'b0, high_square_2[31:30]};
endmodule
`default_nettype wire
