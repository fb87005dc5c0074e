// 1 / sqrt(variance) ≈ root / 2^(16 + places), a value a cycle, six cycles later: a seed of a table and one Newton step.
// variance = x · 4^places / 2^14 with x in [2^14, 2^16); 0 counts as 1.
`default_nettype none

module gs_root (
    input  wire        clk_i,
    input  wire        rst_i,
    input  wire        valid_i,
    input  wire [61:0] variance_i,
    output wire        valid_o,
    output reg  [15:0] root_o,
    output wire [ 4:0] places_o
);
    // 1: the pair of bits that holds the first one
    reg [4:0] pair;
    integer i;
    always @* begin
        pair = 5'd0;
        for (i = 1; i < 31; i = i + 1) if (variance_i[2*i] || variance_i[2*i+1]) pair = i[4:0];
    end

    reg [61:0] variance_1;
    reg [15:0] x_2, x_3, x_4, seed_3, seed_4, seed_5, square_4;
    reg [17:0] error_5;
    reg [4:0] places_1, places_2, places_3, places_4, places_5, places_6;
    reg [5:0] valid_q;

    wire [77:0] aligned = {variance_1, 16'd0} << {5'd30 - places_1, 1'b0};
    wire [15:0] seed;
    wire [31:0] square = seed_3 * seed_3;
    wire [31:0] error = 32'hC000_0000 - x_4 * square_4;
    wire [33:0] root = seed_5 * error_5;

    gs_root_seeds seeds (
        .index_i(x_2[15:8]),
        .seed_o (seed)
    );

    assign valid_o  = valid_q[5];
    assign places_o = places_6;

    always @(posedge clk_i) begin
        valid_q <= rst_i ? 6'd0 : {valid_q[4:0], valid_i};
        places_1 <= pair;
        variance_1 <= variance_i == 62'd0 ? 62'd1 : variance_i;
        // 2: aligned to [2^14, 2^16)
        places_2 <= places_1;
        x_2 <= aligned[77:62];
        // 3: the seed
        places_3 <= places_2;
        x_3 <= x_2;
        seed_3 <= seed;
        // 4 … 6: seed · (3 − x · seed²) / 2; it comes from below and never reaches 2^16
        places_4 <= places_3;
        x_4 <= x_3;
        seed_4 <= seed_3;
        square_4 <= square[31:16];
        places_5 <= places_4;
        seed_5 <= seed_4;
        error_5 <= error[31:14];
        places_6 <= places_5;
        root_o <= root[32:17];
    end

    wire unused = &{1'b0, aligned[61:0], square[15:0], error[13:0], root[33], root[16:0]};
endmodule
`default_nettype wire
