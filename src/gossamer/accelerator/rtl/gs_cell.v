// A cell of the array: a dot product of DEPTH bytes a cycle, added to an accumulator; at a tile's last chunk the sum goes to
// a second register, which is drained while the next tile is computed. The left operand has 9 bits, signed.
// With FOUR_BIT the right operand's halves are multiplied apart: together they are one 8-bit column, or two 4-bit columns,
// every chunk's partial sum of which is multiplied by its group's number (scale_i; low half 1 where four_bit_i is low).
`default_nettype none
module gs_cell #(
    parameter DEPTH    = 8,
    parameter FOUR_BIT = 1
) (
    input  wire               clk_i,
    input  wire [9*DEPTH-1:0] a_i,
    input  wire [8*DEPTH-1:0] w_i,
    input  wire               four_bit_i,
    input  wire               add_i,   // the cycle after a_i, w_i, as the next three
    input  wire               first_i,
    input  wire               last_i,
    input  wire [7:0]         scale_i,
    input  wire               drain_i,
    input  wire [31:0]        low_i,   // the column that comes into this one's place at a drain
    input  wire [31:0]        high_i,
    output reg  [31:0]        low_o,
    output wire [31:0]        high_o
);
    localparam SUM = 17 + $clog2(DEPTH);

    reg [31:0] low_q;
    wire [31:0] low_term;
    wire [31:0] low_next = (first_i ? 32'd0 : low_q) + low_term;

    always @(posedge clk_i) begin
        if (add_i) low_q <= low_next;
        if (add_i && last_i) low_o <= low_next;
        else if (drain_i) low_o <= low_i;
    end

    genvar b;
    integer i;
    generate
        if (FOUR_BIT != 0) begin : g_split
            wire [SUM*DEPTH-1:0] low_products, high_products;
            reg signed [SUM-1:0] low_dot, high_dot, low_dot_q, high_dot_q;
            reg [31:0] high_q, high_hold_q;
            wire signed [31:0] low_wide = {{(32 - SUM){low_dot_q[SUM-1]}}, low_dot_q};
            wire signed [31:0] high_wide = {{(32 - SUM){high_dot_q[SUM-1]}}, high_dot_q};
            wire signed [31:0] low_scale = {28'd0, scale_i[3:0]};
            wire signed [31:0] high_scale = {28'd0, scale_i[7:4]};
            wire signed [31:0] low_scaled = low_wide * low_scale;
            wire signed [31:0] high_scaled = high_wide * high_scale;
            wire [31:0] high_next = (first_i ? 32'd0 : high_q) + high_scaled;
            assign low_term = low_scaled + (four_bit_i ? 32'd0 : {high_wide[27:0], 4'd0});
            assign high_o = high_hold_q;

            for (b = 0; b < DEPTH; b = b + 1) begin : g_product
                wire sign = four_bit_i && w_i[8*b+3];  // the low half of eight bits has none
                wire signed [SUM-1:0] a = {{(SUM - 9){a_i[9*b+8]}}, a_i[9*b +: 9]};
                wire signed [SUM-1:0] low = {{(SUM - 4){sign}}, w_i[8*b +: 4]};
                wire signed [SUM-1:0] high = {{(SUM - 4){w_i[8*b+7]}}, w_i[8*b+4 +: 4]};
                assign low_products[SUM*b +: SUM] = a * low;
                assign high_products[SUM*b +: SUM] = a * high;
            end

            always @* begin
                low_dot  = {SUM{1'b0}};
                high_dot = {SUM{1'b0}};
                for (i = 0; i < DEPTH; i = i + 1) begin
                    low_dot  = low_dot + low_products[SUM*i +: SUM];
                    high_dot = high_dot + high_products[SUM*i +: SUM];
                end
            end

            always @(posedge clk_i) begin
                low_dot_q  <= low_dot;
                high_dot_q <= high_dot;
                if (add_i) high_q <= high_next;
                if (add_i && last_i) high_hold_q <= high_next;
                else if (drain_i) high_hold_q <= high_i;
            end
        end else begin : g_whole
            wire [SUM*DEPTH-1:0] products;
            reg signed [SUM-1:0] dot, dot_q;
            /* verilator lint_off UNUSEDSIGNAL */
            wire unused = &{1'b0, four_bit_i, scale_i, high_i};
            /* verilator lint_on UNUSEDSIGNAL */
            assign low_term = {{(32 - SUM){dot_q[SUM-1]}}, dot_q};
            assign high_o = 32'd0;

            for (b = 0; b < DEPTH; b = b + 1) begin : g_product
                wire signed [SUM-1:0] a = {{(SUM - 9){a_i[9*b+8]}}, a_i[9*b +: 9]};
                wire signed [SUM-1:0] w = {{(SUM - 8){w_i[8*b+7]}}, w_i[8*b +: 8]};
                assign products[SUM*b +: SUM] = a * w;
            end

            always @* begin
                dot = {SUM{1'b0}};
                for (i = 0; i < DEPTH; i = i + 1) dot = dot + products[SUM*i +: SUM];
            end

            always @(posedge clk_i) dot_q <= dot;
        end
    endgenerate
endmodule
`default_nettype wire
