// One pass over rows of n 16-bit elements, LANES elements of each a cycle (a slice). A chunk is read at its first slice.
`default_nettype none

module gs_slices #(
    parameter DEPTH = 8,
    parameter LANES = 4
) (
    input  wire        clk_i,
    input  wire        rst_i,
    input  wire        start_i,
    input  wire [15:0] n_i,       // at least 1
    output reg         valid_o,   // a slice begins its way; from the cycle after start_i
    output wire        first_o,   // … the first of the pass
    output wire        last_o,    // … the last of the pass
    output wire        read_o,    // chunk chunk_o is to be read
    output reg  [15:0] chunk_o
);
    localparam FINAL = DEPTH / (2 * LANES) - 1;

    reg [15:0] left_q;
    reg [5:0] slot_q;

    assign first_o = valid_o && left_q == n_i;
    assign last_o  = valid_o && left_q <= LANES[15:0];
    assign read_o  = valid_o && slot_q == 6'd0;

    always @(posedge clk_i)
        if (rst_i) valid_o <= 1'b0;
        else if (start_i) begin
            valid_o <= 1'b1;
            left_q <= n_i;
            slot_q <= 6'd0;
            chunk_o <= 16'd0;
        end else if (valid_o) begin
            valid_o <= !last_o;
            left_q <= left_q - LANES[15:0];
            slot_q <= slot_q == FINAL[5:0] ? 6'd0 : slot_q + 6'd1;
            if (slot_q == FINAL[5:0]) chunk_o <= chunk_o + 16'd1;
        end
endmodule
`default_nettype wire
