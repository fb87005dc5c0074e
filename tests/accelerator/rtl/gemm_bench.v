// gs_gemm with behavioural memories that a test fills and reads. What was not asked for is all ones.
`default_nettype none
module gemm_bench #(
    parameter ROWS       = 8,
    parameter COLUMNS    = 8,
    parameter DEPTH      = 8,
    parameter LANES      = 4,
    parameter FOUR_BIT   = 1,
    parameter BUS_BYTES  = 16,
    parameter PARAMETERS = 256,
    parameter GROUPS     = 64,
    parameter TABLES     = 4,
    parameter CHUNKS     = 64,
    parameter LINES      = 512,
    parameter LINE_ROWS  = (ROWS > COLUMNS) ? ROWS : COLUMNS
) (
    input  wire                         clk_i,
    input  wire                         rst_i,
    input  wire                         start_i,
    input  wire [511:0]                 instruction_i,
    input  wire [255:0]                 registers_i,
    output wire                         busy_o,
    output wire                         issue_o,
    input  wire                         write_i,
    input  wire [23:0]                  line_i,
    input  wire [8*LINE_ROWS*DEPTH-1:0] data_i,
    output wire [8*LINE_ROWS*DEPTH-1:0] data_o,
    input  wire                         entry_write_i,
    input  wire [23:0]                  entry_i,
    input  wire [63:0]                  entry_data_i,
    input  wire                         side_i,
    input  wire [2:0]                   space_i,
    input  wire [31:0]                  word_i,
    input  wire [8*BUS_BYTES-1:0]       side_data_i
);
    localparam WIDTH = 8 * LINE_ROWS * DEPTH;
    reg [WIDTH-1:0] lines[0:LINES-1];
    reg [63:0] entries[0:PARAMETERS-1];
    reg [WIDTH-1:0] a_q, w_q, x_q;
    reg [64*LANES-1:0] p_q;
    wire a_en, w_en, x_en, o_en, p_en;
    wire [23:0] a_line, w_line, x_line, o_line, p_entry;
    wire [LINE_ROWS-1:0] o_rows;
    wire [WIDTH-1:0] o_data;
    integer r, q;

    assign data_o = lines[line_i];
    assign issue_o = a_en;

    always @(posedge clk_i) begin
        a_q <= a_en ? lines[a_line] : {WIDTH{1'b1}};
        w_q <= w_en ? lines[w_line] : {WIDTH{1'b1}};
        x_q <= x_en ? lines[x_line] : {WIDTH{1'b1}};
        if (write_i) lines[line_i] <= data_i;
        for (r = 0; r < LINE_ROWS; r = r + 1)
            if (o_en && o_rows[r]) lines[o_line][8*DEPTH*r +: 8*DEPTH] <= o_data[8*DEPTH*r +: 8*DEPTH];
        if (entry_write_i) entries[entry_i] <= entry_data_i;
        for (q = 0; q < LANES; q = q + 1) p_q[64*q +: 64] <= p_en ? entries[p_entry + q] : {64{1'b1}};
    end

    gs_gemm #(
        .ROWS(ROWS), .COLUMNS(COLUMNS), .DEPTH(DEPTH), .LANES(LANES), .FOUR_BIT(FOUR_BIT), .BUS_BYTES(BUS_BYTES),
        .GROUPS(GROUPS), .TABLES(TABLES), .CHUNKS(CHUNKS)
    ) gemm (
        .clk_i(clk_i), .rst_i(rst_i), .start_i(start_i), .instruction_i(instruction_i), .registers_i(registers_i),
        .busy_o(busy_o), .a_en_o(a_en), .a_line_o(a_line), .a_data_i(a_q), .w_en_o(w_en), .w_line_o(w_line),
        .w_data_i(w_q), .x_en_o(x_en), .x_line_o(x_line), .x_data_i(x_q), .o_en_o(o_en), .o_line_o(o_line),
        .o_rows_o(o_rows), .o_data_o(o_data), .p_en_o(p_en), .p_entry_o(p_entry), .p_data_i(p_q), .m_en_i(side_i),
        .m_space_i(space_i), .m_word_i(word_i), .m_data_i(side_data_i)
    );
endmodule
`default_nettype wire
