// floor((2^(p+16) - 1) / total) and p = floor(log2 total): golden `reciprocal`. A serial divider, one bit a cycle: all bits of
// the dividend are ones, and the part above the first 16 quotient bits, 2^p - 1, is less than the divisor. A total of 0
// counts as 1. The result stands 18 cycles after start_i.
`default_nettype none
module gs_reciprocal (
    input  wire        clk_i,
    input  wire        start_i,
    input  wire [30:0] total_i,
    output reg  [15:0] inverse_o,
    output reg  [4:0]  place_o
);
    reg [30:0] total_q;
    reg [30:0] rest_q;
    reg [4:0]  left_q;
    wire [31:0] doubled = {rest_q, 1'b1};
    wire [30:0] less = doubled[30:0] - total_q;
    wire over = doubled >= {1'b0, total_q};

    reg [4:0] place;
    integer i;

    always @* begin
        place = 5'd0;
        for (i = 0; i < 31; i = i + 1) if (total_i[i]) place = i[4:0];
    end

    always @(posedge clk_i) begin
        if (start_i) begin
            total_q <= (total_i == 31'd0) ? 31'd1 : total_i;
            place_o <= place;
            left_q  <= 5'd17;
        end else if (left_q != 5'd0) begin
            left_q <= left_q - 5'd1;
            if (left_q == 5'd17) begin
                rest_q <= (31'd1 << place_o) - 31'd1;
            end else begin
                rest_q    <= over ? less : doubled[30:0];
                inverse_o <= {inverse_o[14:0], over};
            end
        end
    end
endmodule
`default_nettype wire
