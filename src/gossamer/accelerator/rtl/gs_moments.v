// What a norm needs to know of its rows: sums of the elements and 1 / sqrt(variance), of NORM_ROWS rows at once.
// Sums are gathered a slice a cycle; then the rows go one by one through gs_variance and gs_root, eleven cycles deep.
`default_nettype none

module gs_moments #(
    parameter NORM_ROWS = 8,
    parameter LANES     = 4
) (
    input  wire                          clk_i,
    input  wire                          rst_i,
    input  wire                          centred_i,   // subtract the mean
    input  wire [                  15:0] n_i,
    input  wire [                  47:0] epsilon_i,
    input  wire [                   7:0] count_i,     // rows that matter
    input  wire                          valid_i,     // elements_i is a slice; squares_i are its squares a cycle later
    input  wire                          first_i,
    input  wire                          last_i,
    input  wire [16*NORM_ROWS*LANES-1:0] elements_i,
    input  wire [32*NORM_ROWS*LANES-1:0] squares_i,
    output reg  [32*NORM_ROWS-1:0]       sums_o,      // signed; zero unless centred
    output reg  [16*NORM_ROWS-1:0]       roots_o,     // 1 / sqrt(variance) = root / 2^(16 + places)
    output reg  [ 5*NORM_ROWS-1:0]       places_o,
    output reg                           done_o       // one cycle: all of them are there
);
    localparam WIDER = $clog2(LANES) + 1;

    reg valid_q, first_q, last_q;
    reg [46*NORM_ROWS-1:0] squares_q;
    reg feeding_q;
    reg [5:0] fed_q, got_q;

    wire [31:0] row = {26'd0, fed_q};
    wire [31:0] sum = sums_o[32*row +: 32];
    wire [45:0] squares = squares_q[46*row +: 46];
    wire varied, rooted;
    wire [61:0] variance;
    wire [15:0] root;
    wire [4:0] places;

    gs_variance variance_of (
        .clk_i(clk_i), .rst_i(rst_i), .valid_i(feeding_q), .n_i(n_i), .epsilon_i(epsilon_i),
        .sum_i(sum), .squares_i(squares), .valid_o(varied), .variance_o(variance)
    );
    gs_root root_of (
        .clk_i(clk_i), .rst_i(rst_i), .valid_i(varied), .variance_i(variance),
        .valid_o(rooted), .root_o(root), .places_o(places)
    );

    wire fed = {2'd0, fed_q} + 8'd1 == count_i;
    wire got = {2'd0, got_q} + 8'd1 == count_i;

    always @(posedge clk_i) begin
        valid_q <= !rst_i && valid_i;
        first_q <= first_i;
        last_q <= last_i;
        done_o <= !rst_i && rooted && got;
        if (rst_i) feeding_q <= 1'b0;
        else if (valid_q && last_q) begin
            feeding_q <= 1'b1;
            fed_q <= 6'd0;
            got_q <= 6'd0;
        end else if (feeding_q) begin
            feeding_q <= !fed;
            fed_q <= fed_q + 6'd1;
        end
        if (rooted) got_q <= got_q + 6'd1;
    end

    genvar r;
    generate
        for (r = 0; r < NORM_ROWS; r = r + 1) begin : rows
            // the slice is summed up first, in fewer bits than the row's sums have: a shorter way
            reg [15+WIDER:0] slice_sum;
            reg [31+WIDER:0] slice_squares;
            integer q;
            always @* begin
                slice_sum = {(16 + WIDER){1'b0}};
                slice_squares = {(32 + WIDER){1'b0}};
                for (q = 0; q < LANES; q = q + 1) begin
                    slice_sum = slice_sum + {{WIDER{elements_i[16*(r*LANES+q) + 15]}}, elements_i[16*(r*LANES+q) +: 16]};
                    slice_squares = slice_squares + {{WIDER{1'b0}}, squares_i[32*(r*LANES+q) +: 32]};
                end
                if (!centred_i) slice_sum = {(16 + WIDER){1'b0}};
            end
            wire [31:0] sum_d = (first_i ? 32'd0 : sums_o[32*r +: 32]) + {{(16 - WIDER){slice_sum[15+WIDER]}}, slice_sum};
            wire [45:0] squares_d = (first_q ? 46'd0 : squares_q[46*r +: 46]) + {{(14 - WIDER){1'b0}}, slice_squares};
            always @(posedge clk_i) begin
                if (valid_i) sums_o[32*r +: 32] <= sum_d;
                if (valid_q) squares_q[46*r +: 46] <= squares_d;
                if (rooted && got_q == r) begin
                    roots_o[16*r +: 16] <= root;
                    places_o[5*r +: 5] <= places;
                end
            end
        end
    endgenerate
endmodule
`default_nettype wire
