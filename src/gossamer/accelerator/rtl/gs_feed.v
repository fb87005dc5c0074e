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
    wire [30:0] sum = {{(31 - SUM){1'b0}}, sum_q};

    function [9*DEPTH-1:0] feed;
        input [8*DEPTH-1:0] bytes;
        input settle;
        input [3:0] shift;
        reg [8:0] moved;
        integer b;
        begin
            for (b = 0; b < DEPTH; b = b + 1) begin
                moved = {bytes[8*b +: 8], 1'b0} >> shift;
                feed[9*b +: 9] = settle ? {1'b0, moved[8:1]} + {8'd0, moved[0]} : {bytes[8*b+7], bytes[8*b +: 8]};
            end
        end
    endfunction

    function [SUM-1:0] total;
        input [9*DEPTH-1:0] a;
        integer b;
        begin
            total = {SUM{1'b0}};
            for (b = 0; b < DEPTH; b = b + 1) total = total + {{(SUM - 8){1'b0}}, a[9*b +: 8]};
        end
    endfunction

    always @(posedge clk_i) begin
        bytes_q <= bytes_i;
        shift_q <= (octaves > FADED) ? FADED[3:0] : octaves[3:0];
        a_o     <= feed(bytes_q, settle_i, shift_q);
        sum_q   <= total(a_o);
        if (add_i) total_o <= (first_i ? 31'd0 : total_o) + sum;
    end
endmodule
`default_nettype wire
