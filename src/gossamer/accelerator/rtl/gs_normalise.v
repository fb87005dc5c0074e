// (n · q − sum) / sqrt(variance) · gain + offset of LANES elements of NORM_ROWS rows a cycle, saturated to 16 bits,
// six cycles later.
// entries_i belong to the slice whose products came three cycles before.
`default_nettype none

module gs_normalise #(
    parameter NORM_ROWS = 8,
    parameter LANES     = 4
) (
    input  wire                          clk_i,
    input  wire [33*NORM_ROWS*LANES-1:0] products_i,  // n · q, signed
    input  wire [32*NORM_ROWS-1:0]       sums_i,      // signed
    input  wire [16*NORM_ROWS-1:0]       roots_i,
    input  wire [ 5*NORM_ROWS-1:0]       places_i,
    input  wire [64*LANES-1:0]           entries_i,   // offset: bits 31:0, gain: bits 47:32
    input  wire [                   5:0] shift_i,
    output wire [16*NORM_ROWS*LANES-1:0] results_o
);
    genvar r, q;
    generate
        for (r = 0; r < NORM_ROWS; r = r + 1) begin : rows
            wire signed [33:0] sum = {{2{sums_i[32*r + 31]}}, sums_i[32*r +: 32]};
            wire signed [16:0] root = {1'b0, roots_i[16*r +: 16]};
            wire [4:0] places = places_i[5*r +: 5];
            for (q = 0; q < LANES; q = q + 1) begin : lanes
                wire signed [32:0] product = products_i[33*(r*LANES+q) +: 33];
                wire signed [15:0] gain = entries_i[64*q + 32 +: 16];
                wire signed [36:0] offset = {{5{entries_i[64*q + 31]}}, entries_i[64*q +: 32]};

                // z, its size brought near 2^16 by powers of two, times the root: 12 fraction bits
                reg signed [33:0] z_q;
                wire signed [46:0] placed = $signed({z_q, 13'd0}) >>> places;
                reg signed [21:0] placed_q;
                wire signed [38:0] rooted = placed_q * root + 39'sd65536;
                reg signed [19:0] normal_q;
                wire signed [36:0] scaled = normal_q * gain + offset;
                reg signed [36:0] scaled_q;

                gs_shift #(.IN(37), .OUT(16)) round (
                    .clk_i(clk_i), .x_i(scaled_q), .shift_i(shift_i), .y_o(results_o[16*(r*LANES+q) +: 16])
                );

                always @(posedge clk_i) begin
                    z_q <= product - sum;
                    placed_q <= placed[46:21] == {26{placed[46]}} ? placed[21:0] : {placed[46], {21{!placed[46]}}};
                    normal_q <= rooted[38:36] == {3{rooted[38]}} ? rooted[36:17] : {rooted[38], {19{!rooted[38]}}};
                    scaled_q <= scaled;
                end

                wire unused = &{1'b0, rooted[16:0], entries_i[64*q + 48 +: 16]};
            end
        end
    endgenerate
endmodule
`default_nettype wire
