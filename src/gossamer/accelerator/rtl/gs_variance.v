// V = n · squares − sum² + epsilon, a value a cycle, five cycles later. Products are made of 16-bit pieces and sums of halves
// of 31 bits, the upper one a stage later, so that no stage holds more than a multiplier or a short carry chain.
// n · squares < 2^62 and V ≥ 0 always.
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
    reg [4:0] valid_q;
    reg [31:0] sum_1;
    reg [45:0] squares_1;
    reg [31:0] low_2, middle_2, low_square_2, cross_2, high_square_2;
    reg [29:0] high_2;
    reg [32:0] mean_low_3;
    reg [31:0] square_low_3, low_4;
    reg [30:0] mean_high_3, square_high_3, mean_high_4, square_high_4;
    reg [16:0] middle_3;
    reg [17:0] cross_3;

    wire [31:0] n = {16'd0, n_i};

    assign valid_o = valid_q[4];

    always @(posedge clk_i) begin
        valid_q <= rst_i ? 5'd0 : {valid_q[3:0], valid_i};
        sum_1 <= sum_i[31] ? -sum_i : sum_i;
        squares_1 <= squares_i;
        low_2 <= n * {16'd0, squares_1[15:0]};
        middle_2 <= n * {16'd0, squares_1[31:16]};
        high_2 <= n[29:0] * {16'd0, squares_1[45:32]};
        low_square_2 <= {16'd0, sum_1[15:0]} * {16'd0, sum_1[15:0]};
        cross_2 <= {16'd0, sum_1[31:16]} * {16'd0, sum_1[15:0]};
        high_square_2 <= {16'd0, sum_1[31:16]} * {16'd0, sum_1[31:16]};
        mean_low_3 <= {2'd0, low_2[30:0]} + {2'd0, middle_2[14:0], 16'd0} + {2'd0, epsilon_i[30:0]};
        mean_high_3 <= {high_2, low_2[31]};
        middle_3 <= middle_2[31:15];
        square_low_3 <= {1'b0, low_square_2[30:0]} + {1'b0, cross_2[13:0], 17'd0};
        square_high_3 <= {high_square_2[29:0], low_square_2[31]};
        cross_3 <= cross_2[31:14];
        mean_high_4 <= mean_high_3 + {14'd0, middle_3} + {14'd0, epsilon_i[47:31]} + {29'd0, mean_low_3[32:31]};
        square_high_4 <= square_high_3 + {13'd0, cross_3} + {30'd0, square_low_3[31]};
        low_4 <= {1'b0, mean_low_3[30:0]} - {1'b0, square_low_3[30:0]};  // the highest bit is the borrow
        variance_o <= {mean_high_4 - square_high_4 - {30'd0, low_4[31]}, low_4[30:0]};
    end

    wire unused = &{1'b0, high_square_2[31:30]};
endmodule
`default_nettype wire
