// A row's scores, LANES a cycle, to exponentials of 8 bits against the row's running maximum: golden `Softmax`. Scores wait in
// a delay line until their chunk's maximum is known; the maximum is kept in whole octaves, so that exponentials of earlier
// chunks can later be brought to it by shifts. Exponentials come DEPTH / LANES + 5 cycles after scores_i.
`default_nettype none
module gs_softmax #(
    parameter DEPTH = 8,
    parameter LANES = 4
) (
    input  wire                clk_i,
    input  wire                start_i,   // with last_i: of a row's first chunk
    input  wire [16*LANES-1:0] scores_i,
    input  wire [LANES-1:0]    valid_i,
    input  wire                first_i,   // one cycle after the first scores_i of a chunk
    input  wire                last_i,    // two cycles after the last scores_i of a chunk
    output reg  [9:0]          octave_o,  // the maximum, from the cycle after last_i
    output reg  [8*LANES-1:0]  exponentials_o
);
    localparam WAITS = DEPTH / LANES + 1;
    localparam WIDTH = 17 * LANES;
    localparam [15:0] LOW = 16'h8000;
    localparam [10:0] FADED = 11'd9;

    reg [WIDTH*(WAITS+1)-1:0] line_q;  // newest at the top
    reg [15:0] highest, window_q, chunk_q;
    integer i;
    wire [16:0] chunk_up = {chunk_q[15], chunk_q} + 17'd63;
    wire [9:0] aligned = chunk_up[15:6];
    wire unused = &{1'b0, chunk_up[16], chunk_up[5:0]};

    always @* begin
        highest = LOW;
        for (i = 0; i < LANES; i = i + 1)
            if (valid_i[i] && $signed(scores_i[16*i +: 16]) > $signed(highest)) highest = scores_i[16*i +: 16];
    end

    always @(posedge clk_i) begin
        line_q   <= {valid_i, scores_i, line_q[WIDTH*(WAITS+1)-1:WIDTH]};
        window_q <= highest;
        if (first_i || $signed(window_q) > $signed(chunk_q)) chunk_q <= window_q;
        if (last_i && (start_i || $signed(aligned) > $signed(octave_o))) octave_o <= aligned;
    end

    genvar q;
    generate
        for (q = 0; q < LANES; q = q + 1) begin : g_lane
            wire [15:0] score = line_q[16*q +: 16];
            wire [7:0] exponential;
            reg [16:0] distance_q;
            reg [7:0] exponential_q;
            reg [3:0] shift_q;
            reg [1:0] valid_q;
            wire [8:0] moved = {exponential_q, 1'b0} >> shift_q;

            gs_exponential table_q (.index_i(distance_q[5:0]), .exponential_o(exponential));

            always @(posedge clk_i) begin
                distance_q    <= {octave_o[9], octave_o, 6'd0} - {score[15], score};
                exponential_q <= exponential;
                shift_q       <= (distance_q[16:6] > FADED) ? FADED[3:0] : distance_q[9:6];
                valid_q       <= {valid_q[0], line_q[16*LANES+q]};
                exponentials_o[8*q +: 8] <= valid_q[1] ? moved[8:1] + {7'd0, moved[0]} : 8'd0;
            end
        end
    endgenerate
endmodule
`default_nettype wire
