// gs_norm, gs_add and gs_root beside memories that the test fills and reads. Read data are only there in the cycle after the
// request, and garbage in all others.
`default_nettype none

module vector_bench #(
    parameter ROWS      = 8,
    parameter COLUMNS   = 8,
    parameter DEPTH     = 8,
    parameter LANES     = 4,
    parameter NORM_ROWS = 8,
    parameter LINE_ROWS = ROWS > COLUMNS ? ROWS : COLUMNS,
    parameter LINES     = 256,
    parameter ENTRIES   = 1024
) (
    input  wire                         clk_i,
    input  wire                         rst_i,
    input  wire                         add_i,
    input  wire                         start_i,
    input  wire [                511:0] instruction_i,
    output wire                         busy_o,
    output reg  [                 31:0] cycles_o,
    output reg                          late_o,         // a write after the unit said that it rests
    input  wire                         line_en_i,
    input  wire [                 23:0] line_i,
    input  wire [8*LINE_ROWS*DEPTH-1:0] line_data_i,
    output wire [8*LINE_ROWS*DEPTH-1:0] line_data_o,
    input  wire                         entry_en_i,
    input  wire [                 23:0] entry_i,
    input  wire [                 63:0] entry_data_i,
    input  wire                         root_en_i,
    input  wire [                 61:0] root_variance_i,
    output wire                         root_valid_o,
    output wire [                 15:0] root_o,
    output wire [                  4:0] root_places_o
);
    localparam LINE = 8 * LINE_ROWS * DEPTH;

    reg [LINE-1:0] memory [0:LINES-1];
    reg [63:0] entries [0:ENTRIES-1];
    reg [LINE-1:0] a_data, x_data;
    reg [64*LANES-1:0] p_data;

    wire norm_busy, norm_a_en, norm_o_en, add_busy, add_a_en, add_o_en, x_en, p_en;
    wire [23:0] norm_a_line, norm_o_line, add_a_line, add_o_line, x_line, p_entry;
    wire [LINE_ROWS-1:0] norm_rows, add_rows;
    wire [LINE-1:0] norm_data, add_data;

    wire a_en = norm_a_en || add_a_en;
    wire [23:0] a_line = norm_a_en ? norm_a_line : add_a_line;
    wire o_en = norm_o_en || add_o_en;
    wire [23:0] o_line = norm_o_en ? norm_o_line : add_o_line;
    wire [LINE_ROWS-1:0] rows = norm_o_en ? norm_rows : add_rows;
    wire [LINE-1:0] o_data = norm_o_en ? norm_data : add_data;

    assign busy_o = norm_busy || add_busy;
    assign line_data_o = memory[line_i];

    integer i;
    always @(posedge clk_i) begin
        cycles_o <= start_i ? 32'd1 : cycles_o + {31'd0, busy_o};
        late_o <= !rst_i && (late_o || (o_en && !busy_o) || (norm_busy && add_busy));
        a_data <= a_en ? memory[a_line] : {LINE_ROWS * DEPTH{8'hA5}};
        x_data <= x_en ? memory[x_line] : {LINE_ROWS * DEPTH{8'h5B}};
        for (i = 0; i < LANES; i = i + 1)
            p_data[64*i +: 64] <= p_en ? entries[p_entry + i] : 64'h0123_4567_89AB_CDEF;
        for (i = 0; i < LINE_ROWS; i = i + 1)
            if (o_en && rows[i]) memory[o_line][8*DEPTH*i +: 8*DEPTH] <= o_data[8*DEPTH*i +: 8*DEPTH];
        if (line_en_i) memory[line_i] <= line_data_i;
        if (entry_en_i) entries[entry_i] <= entry_data_i;
    end

    gs_norm #(.ROWS(ROWS), .COLUMNS(COLUMNS), .DEPTH(DEPTH), .LANES(LANES), .NORM_ROWS(NORM_ROWS)) norm (
        .clk_i(clk_i), .rst_i(rst_i), .start_i(start_i && !add_i), .instruction_i(instruction_i), .registers_i(256'd0),
        .busy_o(norm_busy), .a_en_o(norm_a_en), .a_line_o(norm_a_line), .a_data_i(a_data),
        .o_en_o(norm_o_en), .o_line_o(norm_o_line), .o_rows_o(norm_rows), .o_data_o(norm_data),
        .p_en_o(p_en), .p_entry_o(p_entry), .p_data_i(p_data)
    );
    gs_add #(.ROWS(ROWS), .COLUMNS(COLUMNS), .DEPTH(DEPTH), .LANES(LANES), .NORM_ROWS(NORM_ROWS)) add (
        .clk_i(clk_i), .rst_i(rst_i), .start_i(start_i && add_i), .instruction_i(instruction_i), .registers_i(256'd0),
        .busy_o(add_busy), .a_en_o(add_a_en), .a_line_o(add_a_line), .a_data_i(a_data),
        .x_en_o(x_en), .x_line_o(x_line), .x_data_i(x_data),
        .o_en_o(add_o_en), .o_line_o(add_o_line), .o_rows_o(add_rows), .o_data_o(add_data)
    );
    gs_root root (
        .clk_i(clk_i), .rst_i(rst_i), .valid_i(root_en_i), .variance_i(root_variance_i),
        .valid_o(root_valid_o), .root_o(root_o), .places_o(root_places_o)
    );
endmodule
`default_nettype wire
