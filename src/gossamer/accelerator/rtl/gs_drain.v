// Walks a Gemm's tiles as their sums get whole, LANES columns (a window) a cycle: when columns are shifted out, at which
// parameters, and where the written chunks begin and end.
`default_nettype none
module gs_drain #(
    parameter LANES   = 4,
    parameter DIVIDER = 18
) (
    input  wire        clk_i,
    input  wire        rst_i,
    input  wire        setup_i,
    input  wire        divide_i,
    input  wire [23:0] tiles_i,
    input  wire [7:0]  windows_i,
    input  wire [7:0]  last_windows_i,
    input  wire [5:0]  chunk_windows_i,
    input  wire [23:0] parameters_i,
    input  wire        whole_i,     // a tile's sums stand in the next cycle
    output wire        fresh_o,     // the tile that gets whole next is its row tile's first
    output wire        drain_o,
    output wire        first_o,     // window of a chunk
    output wire        last_o,
    output wire        row_end_o,   // the last window of a row tile
    output wire        odd_o,       // the second, fourth, … window of a chunk
    output reg  [23:0] entry_o
);
    localparam [23:0] STEP = LANES[23:0];
    localparam [4:0] WAIT = DIVIDER[4:0];

    reg [23:0] tile_q;   // that comes next
    reg [7:0] left_q;
    reg [5:0] phase_q;
    reg [4:0] wait_q;
    reg row_last_q;
    wire column_last = tile_q + 24'd1 >= tiles_i;

    assign fresh_o   = tile_q == 24'd0;
    assign drain_o   = left_q != 8'd0 && wait_q == 5'd0;
    assign first_o   = phase_q == 6'd0;
    assign last_o    = phase_q + 6'd1 == chunk_windows_i;
    assign odd_o     = phase_q[0];
    assign row_end_o = row_last_q && left_q == 8'd1;

    always @(posedge clk_i) begin
        if (rst_i || setup_i) begin
            left_q   <= 8'd0;
            tile_q   <= 24'd0;
            phase_q  <= 6'd0;
            wait_q   <= 5'd0;
            entry_o  <= parameters_i;
        end else begin
            if (whole_i) begin
                left_q     <= column_last ? last_windows_i : windows_i;
                row_last_q <= column_last;
                tile_q     <= column_last ? 24'd0 : tile_q + 24'd1;
                wait_q     <= (divide_i && fresh_o) ? WAIT : 5'd0;
            end else begin
                if (drain_o) left_q <= left_q - 8'd1;
                if (wait_q != 5'd0) wait_q <= wait_q - 5'd1;
            end
            if (drain_o) begin
                phase_q <= last_o ? 6'd0 : phase_q + 6'd1;
                entry_o <= row_end_o ? parameters_i : entry_o + STEP;
            end
        end
    end
endmodule
`default_nettype wire
