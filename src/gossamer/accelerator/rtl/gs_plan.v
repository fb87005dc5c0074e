// What a Gemm's walkers count by, from its instruction and the host's registers: sizes in chunks, tiles and windows (LANES
// columns), and the first lines of its tensors. setup_o is high in the third cycle after start_i; all stands in the next.
`default_nettype none
module gs_plan #(
    parameter ROWS    = 8,
    parameter COLUMNS = 8,
    parameter DEPTH   = 8,
    parameter LANES   = 4,
    parameter LINE_ROWS = (ROWS > COLUMNS) ? ROWS : COLUMNS
) (
    input  wire         clk_i,
    input  wire         rst_i,
    input  wire         start_i,
    /* verilator lint_off UNUSEDSIGNAL */
    input  wire [511:0] instruction_i,
    /* verilator lint_on UNUSEDSIGNAL */
    input  wire [255:0] registers_i,
    output wire         setup_o,
    output reg  [23:0]  chunks_o,        // of k
    output reg  [23:0]  tiles_o,         // column tiles of a row tile
    output wire [7:0]   windows_o,       // of a full tile
    output reg  [7:0]   last_windows_o,  // of a row tile's last one
    output wire [5:0]   chunk_windows_o, // of a chunk that is written
    output reg  [31:0]  limit_o,
    output reg  [23:0]  a_line_o,
    output wire [7:0]   a_row_o,         // of the tensors' first rows, in their lines
    output reg  [23:0]  w_line_o,
    output wire [7:0]   w_row_o,
    output reg  [23:0]  x_line_o,
    output wire [7:0]   x_row_o,
    output reg  [23:0]  o_line_o,
    output wire [7:0]   o_row_o
);
    /* verilator lint_off UNUSEDPARAM */
    `include "gs_isa.vh"
    /* verilator lint_on UNUSEDPARAM */
    localparam DEPTH_BITS  = $clog2(DEPTH);
    localparam LANE_BITS   = $clog2(LANES);
    localparam TILE_BITS   = $clog2(COLUMNS);
    localparam LINE_BITS   = $clog2(LINE_ROWS);
    localparam LINE_LAST   = LINE_ROWS - 1;
    localparam OF_TILE     = COLUMNS / LANES;
    localparam OF_CHUNK    = DEPTH / LANES;
    localparam DEPTH_LAST  = DEPTH - 1;
    localparam [7:0] LINE_MASK = LINE_LAST[7:0];
    localparam [7:0] TILE_WINDOWS = OF_TILE[7:0];
    localparam [5:0] CHUNK_WINDOWS = OF_CHUNK[5:0];
    localparam WINDOW_BITS = TILE_BITS - LANE_BITS;
    localparam CHUNK_BITS  = DEPTH_BITS - LANE_BITS;
    localparam [24:0] DEPTH_LESS = DEPTH_LAST[24:0];
    localparam [23:0] TILE = COLUMNS[23:0];

    wire wide = instruction_i[GEMM_MODE_LO +: GEMM_MODE_W] == MODE_INT16[2:0];
    wire four_bit = instruction_i[GEMM_FOUR_BIT_LO];
    wire [31:0] register = registers_i[32*instruction_i[GEMM_REGISTER_LO +: GEMM_REGISTER_W] +: 32];

    // line + (row / LINE_ROWS) * pitch
    function [23:0] place;
        input [23:0] line;
        input [7:0] row;
        input [15:0] pitch;
        place = line + {16'd0, row >> LINE_BITS} * {8'd0, pitch};
    endfunction

    reg [2:0] phase_q;
    reg [23:0] n_q, k_q;
    reg [7:0] written_q;  // chunks of out, as far as their number in a tile needs
    wire [24:0] k_up = {1'b0, k_q} + DEPTH_LESS;
    wire [23:0] n_up = n_q + (four_bit ? (TILE << 1) : TILE) - 24'd1;
    wire [24:0] bytes_up = (wide ? {n_q, 1'b0} : {1'b0, n_q}) + DEPTH_LESS;
    /* verilator lint_off UNUSEDSIGNAL */
    wire [24:0] k_chunks = k_up >> DEPTH_BITS;
    wire [24:0] written = bytes_up >> DEPTH_BITS;
    /* verilator lint_on UNUSEDSIGNAL */
    wire [7:0] earlier = (tiles_o[7:0] - 8'd1) << (four_bit ? WINDOW_BITS + 1 : WINDOW_BITS);
    wire [7:0] all = written_q << (wide ? CHUNK_BITS - 1 : CHUNK_BITS);

    assign setup_o = phase_q[2];
    assign windows_o = four_bit ? TILE_WINDOWS << 1 : TILE_WINDOWS;
    assign chunk_windows_o = wide ? CHUNK_WINDOWS >> 1 : CHUNK_WINDOWS;
    assign a_row_o = instruction_i[GEMM_A_ROW_LO +: 8] & LINE_MASK;
    assign w_row_o = instruction_i[GEMM_W_ROW_LO +: 8] & LINE_MASK;
    assign x_row_o = instruction_i[GEMM_AUX_ROW_LO +: 8] & LINE_MASK;
    assign o_row_o = instruction_i[GEMM_OUT_ROW_LO +: 8] & LINE_MASK;

    always @(posedge clk_i) begin
        phase_q <= rst_i ? 3'd0 : {phase_q[1:0], start_i};
        n_q <= instruction_i[GEMM_N_LO +: GEMM_N_W] + (instruction_i[GEMM_ADD_N_LO] ? register[23:0] : 24'd0);
        k_q <= instruction_i[GEMM_K_LO +: GEMM_K_W] + (instruction_i[GEMM_ADD_K_LO] ? register[23:0] : 24'd0);
        limit_o <= instruction_i[GEMM_LIMIT_LO +: 32] + (instruction_i[GEMM_ADD_LIMIT_LO] ? register : 32'd0);
        chunks_o <= k_chunks[23:0];
        tiles_o <= four_bit ? n_up >> (TILE_BITS + 1) : n_up >> TILE_BITS;
        written_q <= written[7:0];
        last_windows_o <= all - earlier;
        a_line_o <= place(instruction_i[GEMM_A_LINE_LO +: 24], instruction_i[GEMM_A_ROW_LO +: 8],
                          instruction_i[GEMM_A_PITCH_LO +: 16]);
        w_line_o <= place(instruction_i[GEMM_W_LINE_LO +: 24], instruction_i[GEMM_W_ROW_LO +: 8],
                          instruction_i[GEMM_W_PITCH_LO +: 16]);
        x_line_o <= place(instruction_i[GEMM_AUX_LINE_LO +: 24], instruction_i[GEMM_AUX_ROW_LO +: 8],
                          instruction_i[GEMM_AUX_PITCH_LO +: 16]);
        o_line_o <= place(instruction_i[GEMM_OUT_LINE_LO +: 24], instruction_i[GEMM_OUT_ROW_LO +: 8],
                          instruction_i[GEMM_OUT_PITCH_LO +: 16]);
    end
endmodule
`default_nettype wire
