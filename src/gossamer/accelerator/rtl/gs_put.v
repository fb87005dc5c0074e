// Elements into chunks: LANES results of NORM_ROWS rows a cycle are gathered, of 16 bits (wide) or saturated to 8, and written
// a chunk at a time, the first row to row row_i of the line. What a row's last chunk has beyond the last element is zero.
`default_nettype none

module gs_put #(
    parameter LINE_ROWS = 16,
    parameter NORM_ROWS = 8,
    parameter DEPTH     = 8,
    parameter LANES     = 4
) (
    input  wire                          clk_i,
    input  wire                          rst_i,
    input  wire                          valid_i,
    input  wire                          first_i,
    input  wire                          last_i,
    input  wire                          wide_i,
    input  wire [16*NORM_ROWS*LANES-1:0] elements_i,
    input  wire [                  23:0] line_i,      // of the rows' first chunk
    input  wire [                   7:0] row_i,
    input  wire [                   7:0] count_i,     // rows that are written
    output reg                           o_en_o,
    output reg  [                  23:0] o_line_o,
    output reg  [         LINE_ROWS-1:0] o_rows_o,
    output wire [8*LINE_ROWS*DEPTH-1:0]  o_data_o,
    output reg                           done_o       // with the write of the last chunk
);
    localparam SLOTS = DEPTH / LANES;
    localparam ROW = 8 * DEPTH;
    localparam FINAL = SLOTS - 1;
    localparam WIDE_FINAL = SLOTS / 2 - 1;

    reg [NORM_ROWS*ROW-1:0] chunks_q;
    reg [6:0] slot_q;
    wire full = last_i || slot_q == (wide_i ? WIDE_FINAL[6:0] : FINAL[6:0]);

    always @(posedge clk_i) begin
        o_en_o <= !rst_i && valid_i && full;
        done_o <= !rst_i && valid_i && last_i;
        if (rst_i) slot_q <= 7'd0;
        else if (valid_i) slot_q <= full ? 7'd0 : slot_q + 7'd1;
        if (valid_i) o_line_o <= first_i ? line_i : o_line_o + {23'd0, slot_q == 7'd0};
    end

    wire [8*NORM_ROWS*LANES-1:0] narrow;
    genvar e, r, b;
    generate
        for (e = 0; e < NORM_ROWS * LANES; e = e + 1) begin : elements
            wire [15:0] element = elements_i[16*e +: 16];
            wire fits = element[15:7] == {9{element[15]}};
            assign narrow[8*e +: 8] = fits ? element[7:0] : {element[15], {7{!element[15]}}};
        end
        for (r = 0; r < NORM_ROWS; r = r + 1) begin : rows
            for (b = 0; b < DEPTH; b = b + 1) begin : bytes
                localparam NARROW = 8 * (r * LANES + b % LANES);
                localparam WIDE = 16 * (r * LANES + b / 2 % LANES) + 8 * (b % 2);
                localparam NARROW_SLOT = b / LANES;
                localparam WIDE_SLOT = b / (2 * LANES);
                wire hit = slot_q == (wide_i ? WIDE_SLOT[6:0] : NARROW_SLOT[6:0]);
                always @(posedge clk_i)
                    if (valid_i && hit)
                        chunks_q[r*ROW + 8*b +: 8] <= wide_i ? elements_i[WIDE +: 8] : narrow[NARROW +: 8];
                    else if (valid_i && slot_q == 7'd0) chunks_q[r*ROW + 8*b +: 8] <= 8'd0;
            end
        end
        for (r = 0; r < LINE_ROWS; r = r + 1) begin : line
            localparam [7:0] HERE = r;
            wire [7:0] from = HERE - row_i;
            always @(posedge clk_i) o_rows_o[r] <= from < count_i;
            assign o_data_o[r*ROW +: ROW] = chunks_q[({24'd0, from} & (NORM_ROWS - 1))*ROW +: ROW];
        end
    endgenerate
endmodule
`default_nettype wire
