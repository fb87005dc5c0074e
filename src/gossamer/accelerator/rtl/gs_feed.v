// A row's left operand: bytes made 9 bits, signed. Exponentials (settle_i) are unsigned and are first brought from their
// chunk's octave to the row's last one (golden `settle`), and summed over the row. Two stages; the sum two later.
`default_nettype none
module gs_feed #(
    parameter DEPTH = 8
) (
    input  wire               clk_i,
    input  wire               settle_i,
    input  wire [8*DEPTH-1:0] bytes_i,
    input  wire [9:0]         octave_i,
    input  wire [9:0]         last_octave_i,
    input  wire               add_i,    // three cycles after bytes_i, as first_i
    input  wire               first_i,
    output reg  [9*DEPTH-1:0] a_o,
    output reg  [30:0]        total_o
);
    /* verilator no_inline_module */
    localparam SUM = 8 + $clog2(DEPTH);
    localparam [10:0] FADED = 11'd9;
    wire [10:0] octaves = {last_octave_i[9], last_octave_i} - {octave_i[9], octave_i};  // 0 or more
    reg [8*DEPTH-1:0] bytes_q;
    reg [3:0] shift_q;
    reg [SUM-1:0] sum_q;

    wire [9*DEPTH-1:0] a;
    reg [SUM-1:0] sum;
    integer i;

    genvar b;
    generate
        for (b = 0; b < DEPTH; b = b + 1) begin : g_byte
            wire [8:0] moved = {bytes_q[8*b +: 8], 1'b0} >> shift_q;
            assign a[9*b +: 9] = settle_i ? {1'b0, moved[8:1]} + {8'd0, moved[0]} : {bytes_q[8*b+7], bytes_q[8*b +: 8]};
        end
    endgenerate

    always @* begin
        sum = {SUM{1'b0}};
        for (i = 0; i < DEPTH; i = i + 1) sum = sum + {{(SUM - 8){1'b0}}, a_o[9*i +: 8]};
    end

    always @(posedge clk_i) begin
        bytes_q <= bytes_i;
        shift_q <= (octaves > FADED) ? FADED[3:0] : octaves[3:0];
        a_o     <= a;
        sum_q   <= sum;
        if (add_i) total_o <= (first_i ? 31'd0 : total_o) + {{(31 - SUM){1'b0}}, sum_q};
    end
endmodule
`default_nettype wire
