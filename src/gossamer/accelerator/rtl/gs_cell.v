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

    // halves of w: 0 the low one, unsigned; 1 the low one, signed; 2 the high one, signed; 3 all eight bits, signed
    function signed [SUM-1:0] dot;
        input [9*DEPTH-1:0] a;
        input [8*DEPTH-1:0] w;
        input [1:0] part;
        reg signed [SUM-1:0] x, y;
        integer b;
        begin
            dot = {SUM{1'b0}};
            for (b = 0; b < DEPTH; b = b + 1) begin
                x = {{(SUM - 9){a[9*b+8]}}, a[9*b +: 9]};
                case (part)
                    2'd0: y = {{(SUM - 4){1'b0}}, w[8*b +: 4]};
                    2'd1: y = {{(SUM - 4){w[8*b+3]}}, w[8*b +: 4]};
                    2'd2: y = {{(SUM - 4){w[8*b+7]}}, w[8*b+4 +: 4]};
                    default: y = {{(SUM - 8){w[8*b+7]}}, w[8*b +: 8]};
                endcase
                dot = dot + x * y;
            end
        end
    endfunction

    reg [31:0] low_q;
    wire [31:0] low_term;
    wire [31:0] low_next = (first_i ? 32'd0 : low_q) + low_term;

    always @(posedge clk_i) begin
        if (add_i) low_q <= low_next;
        if (add_i && last_i) low_o <= low_next;
        else if (drain_i) low_o <= low_i;
    end

    generate
        if (FOUR_BIT != 0) begin : g_split
            reg signed [SUM-1:0] low_dot_q, high_dot_q;
            reg [31:0] high_q, high_hold_q;
            wire signed [31:0] low_dot = {{(32 - SUM){low_dot_q[SUM-1]}}, low_dot_q};
            wire signed [31:0] high_dot = {{(32 - SUM){high_dot_q[SUM-1]}}, high_dot_q};
            wire signed [31:0] low_scale = {28'd0, scale_i[3:0]};
            wire signed [31:0] high_scale = {28'd0, scale_i[7:4]};
            wire [31:0] high_next = (first_i ? 32'd0 : high_q) + high_dot * high_scale;
            assign low_term = low_dot * low_scale + (four_bit_i ? 32'd0 : {high_dot[27:0], 4'd0});
            assign high_o = high_hold_q;

            always @(posedge clk_i) begin
                low_dot_q  <= dot(a_i, w_i, {1'b0, four_bit_i});
                high_dot_q <= dot(a_i, w_i, 2'd2);
                if (add_i) high_q <= high_next;
                if (add_i && last_i) high_hold_q <= high_next;
                else if (drain_i) high_hold_q <= high_i;
            end
        end else begin : g_whole
            reg signed [SUM-1:0] dot_q;
            /* verilator lint_off UNUSEDSIGNAL */
            wire unused = &{1'b0, four_bit_i, scale_i, high_i};
            /* verilator lint_on UNUSEDSIGNAL */
            assign low_term = {{(32 - SUM){dot_q[SUM-1]}}, dot_q};
            assign high_o = 32'd0;
            always @(posedge clk_i) dot_q <= dot(a_i, w_i, 2'd3);
        end
    endgenerate
endmodule
`default_nettype wire
