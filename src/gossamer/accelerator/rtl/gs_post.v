// What follows a row's sums, LANES columns a cycle: bias and requantisation (or the average of VALUE), then the mode's own:
// table, addition, product or rotation with aux, softmax. Results gather into a chunk. Nothing stalls: windows of a chunk
// come in successive cycles, and what belongs to them is given at fixed stages (stage 0: sums_i).
`default_nettype none
module gs_post #(
    parameter DEPTH     = 8,
    parameter LANES     = 4,
    parameter TABLES    = 4,
    parameter BUS_BYTES = 16
) (
    input  wire                   clk_i,
    input  wire                   wide_i,      // INT16
    input  wire                   multiply_i,  // MULTIPLY
    input  wire                   rotary_i,    // ROTARY
    input  wire                   score_i,     // SCORE
    input  wire                   value_i,     // VALUE
    input  wire                   aux_i,       // INT16 adds
    input  wire [15:0]            multiplier_i,
    input  wire [5:0]             shift_i,
    input  wire [4:0]             table_i,
    input  wire [15:0]            inverse_i,
    input  wire [4:0]             place_i,
    input  wire                   write_i,     // of the tables
    input  wire [31:0]            word_i,
    input  wire [8*BUS_BYTES-1:0] data_i,
    input  wire [32*LANES-1:0]    sums_i,
    /* verilator lint_off UNUSEDSIGNAL */
    input  wire [64*LANES-1:0]    entries_i,   // stage 1
    /* verilator lint_on UNUSEDSIGNAL */
    input  wire                   load_i,      // stage 4, of a chunk's first window
    input  wire [8*DEPTH-1:0]     x_i,         // stage 4
    input  wire [7:0]             open_i,      // stage 5: valid scores from this window's first column on, signed
    /* verilator lint_off UNUSEDSIGNAL */
    input  wire                   odd_i,       // stage 6: the window is odd (for lone lanes)
    /* verilator lint_on UNUSEDSIGNAL */
    input  wire                   first_i,     // stage 7: the first window of a chunk
    input  wire                   last_i,      // stage 8: the last window of a chunk
    input  wire                   start_i,     // stage 8: the chunk is its row's first
    output wire [9:0]             octave_o,
    output reg  [8*DEPTH-1:0]     chunk_o      // the cycle after the last window's results: stage 11 (SCORE: later)
);
    /* verilator no_inline_module */
    localparam TABLE_BYTES = 256 * TABLES;

    localparam [15:0] SCORE_HIGH = 16'd32704;
    wire [5:0] average_shift = {1'b0, place_i} + 6'd16 - {2'd0, shift_i[3:0]};
    wire signed [32:0] second_multiplier = {17'd0, multiplier_i};
    wire [5:0] second_shift = (multiply_i || rotary_i) ? shift_i : 6'd0;
    wire [4:0] table_place = table_i - 5'd1;
    reg [8*DEPTH-1:0] x_q;
    reg [LANES-1:0] valid_q;                          // stage 6
    /* verilator lint_off UNUSEDSIGNAL */
    wire [16*LANES-1:0] u, a;                         // stage 6: what the sums have become, and aux
    wire [16*LANES-1:0] words;                        // results of 16 bits, and of 8
    wire [8*LANES-1:0] bytes, exponentials;
    wire [8*DEPTH+16*LANES-1:0] shifted_x = {{(16 * LANES){1'b0}}, x_q};
    wire [8*DEPTH+16*LANES-1:0] joined_words = {words, chunk_o};
    wire [8*DEPTH+8*LANES-1:0] joined_bytes = {score_i ? exponentials : bytes, chunk_o};
    /* verilator lint_on UNUSEDSIGNAL */

    always @(posedge clk_i) begin
        if (load_i) x_q <= x_i;
        else x_q <= wide_i ? shifted_x[16*LANES +: 8*DEPTH] : shifted_x[8*LANES +: 8*DEPTH];
        chunk_o <= wide_i ? joined_words[16*LANES +: 8*DEPTH] : joined_bytes[8*LANES +: 8*DEPTH];
    end

    gs_softmax #(.DEPTH(DEPTH), .LANES(LANES)) softmax (
        .clk_i(clk_i), .start_i(start_i), .scores_i(u), .valid_i(valid_q), .first_i(first_i), .last_i(last_i && score_i),
        .octave_o(octave_o), .exponentials_o(exponentials)
    );

    genvar q;
    generate
        for (q = 0; q < LANES; q = q + 1) begin : g_lane
            localparam [7:0] INDEX = q;
            localparam PAIR = (LANES > 1) ? (q ^ 1) : 0;
            // stages 1, 2: bias
            wire [31:0] bias = (score_i || value_i) ? 32'd0 : entries_i[64*q +: 32];
            reg [31:0] sum_q;
            reg [32:0] biased_q;
            reg [15:0] first_multiplier_q;
            reg [5:0] first_shift_q;
            wire [23:0] y;  // stage 5
            // stage 5: the range that goes on
            wire [15:0] y16 = (y[23:15] == {9{y[23]}}) ? y[15:0] : {y[23], {15{!y[23]}}};
            wire [15:0] clipped = ($signed(y16) > $signed(SCORE_HIGH)) ? SCORE_HIGH : y16;
            wire [7:0] y8 = (y16[15:7] == {9{y16[15]}}) ? y16[7:0] : {y16[15], {7{!y16[15]}}};
            wire [15:0] ranged = rotary_i ? y16 : score_i ? clipped : {{8{y8[7]}}, y8};
            wire [15:0] x_word = x_q[16*q +: 16];
            wire [7:0] x_byte = x_q[8*q +: 8];
            wire [15:0] x_next = wide_i ? (aux_i ? x_word : 16'd0) : {{8{x_byte[7]}}, x_byte};
            reg [15:0] u_q, a_q;
            reg [23:0] y_q;
            // stage 6: products with aux. The partner of an even column is the next one, of an odd one the one before.
            wire odd;
            wire [15:0] u_partner;
            wire [7:0] a_partner;
            wire signed [24:0] left = {{9{u_q[15]}}, u_q};
            wire signed [24:0] right = {{9{u_partner[15]}}, u_partner};
            wire [7:0] left_by = (rotary_i && odd) ? a_partner : a_q[7:0];
            wire [7:0] right_by = odd ? a_q[7:0] : a_partner;
            wire signed [24:0] left_factor = {{17{left_by[7]}}, left_by};
            wire signed [24:0] right_factor = rotary_i ? {{17{right_by[7]}}, right_by} : 25'sd0;
            wire signed [24:0] left_product = left * left_factor;
            wire signed [24:0] right_product = right * right_factor;
            wire [24:0] product = odd ? left_product + right_product : left_product - right_product;
            wire [24:0] plain = wide_i ? {y_q[23], y_q} + {{9{a_q[15]}}, a_q} : left;
            reg [24:0] z_q;
            // stages 7 … 10: of a product with aux only, 16 bits, there is something to multiply
            wire signed [32:0] z = {{17{z_q[15]}}, z_q[15:0]};
            wire signed [32:0] scaled = z * second_multiplier;
            reg [32:0] scaled_q;
            wire [15:0] word;
            wire [7:0] looked_up;
            wire [7:0] narrow = (word[15:7] == {9{word[15]}}) ? word[7:0] : {word[15], {7{!word[15]}}};
            reg [23:0] looked_up_q;

            assign u[16*q +: 16] = u_q;
            assign a[16*q +: 16] = a_q;
            assign words[16*q +: 16] = word;
            assign bytes[8*q +: 8] = (table_i != 5'd0) ? looked_up_q[23:16] : narrow;

            gs_requant #(.IN(33), .OUT(24)) first (
                .clk_i(clk_i), .x_i(biased_q), .multiplier_i(first_multiplier_q), .shift_i(first_shift_q), .y_o(y)
            );
            gs_shift #(.IN(33), .OUT(16)) second (.clk_i(clk_i), .x_i(scaled_q), .shift_i(second_shift), .y_o(word));
            gs_side #(.BYTES(TABLE_BYTES), .WRITE_BYTES(BUS_BYTES), .READ_BYTES(1)) tables (
                .clk_i(clk_i), .write_i(write_i), .write_word_i(word_i), .write_data_i(data_i), .read_i(table_i != 5'd0),
                .read_word_i({19'd0, table_place, u_q[7:0]}), .read_data_o(looked_up)
            );

            always @(posedge clk_i) begin
                sum_q    <= sums_i[32*q +: 32];
                biased_q <= {sum_q[31], sum_q} + {bias[31], bias};
                first_multiplier_q <= value_i ? inverse_i : score_i ? multiplier_i : entries_i[64*q+32 +: 16];
                first_shift_q <= value_i ? average_shift : score_i ? shift_i : entries_i[64*q+48 +: 6];
                y_q      <= y;
                u_q      <= ranged;
                a_q      <= x_next;
                valid_q[q] <= $signed(open_i) > $signed(INDEX);
                z_q      <= (multiply_i || rotary_i) ? product : plain;
                scaled_q <= multiply_i ? scaled : {{8{z_q[24]}}, z_q};
                looked_up_q <= {looked_up_q[15:0], looked_up};
            end

            if (LANES == 1) begin : g_lone
                reg [15:0] u_before_q;
                reg [7:0] a_before_q;
                assign odd = odd_i;
                assign u_partner = odd_i ? u_before_q : ranged;
                assign a_partner = odd_i ? a_before_q : x_next[7:0];
                always @(posedge clk_i) begin
                    u_before_q <= u_q;
                    a_before_q <= a_q[7:0];
                end
            end else begin : g_pair
                assign odd = (q % 2 == 1);
                assign u_partner = u[16*PAIR +: 16];
                assign a_partner = a[16*PAIR +: 8];
            end
        end
    endgenerate
endmodule
`default_nettype wire
