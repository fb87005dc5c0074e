// (n · q − sum) / sqrt(variance) · gain + offset of an element, saturated to 16 bits, six cycles later.
// gain_i and offset_i belong to the element whose product came three cycles before.
`default_nettype none

module gs_normalise (
    input  wire        clk_i,
    input  wire [32:0] product_i,  // n · q, signed
    input  wire [31:0] sum_i,      // signed
    input  wire [15:0] root_i,
    input  wire [ 4:0] places_i,
    input  wire [15:0] gain_i,     // signed
    input  wire [31:0] offset_i,   // signed
    input  wire [ 5:0] shift_i,
    output wire [15:0] result_o
);
    wire signed [33:0] product = {product_i[32], product_i};
    wire signed [33:0] sum = {{2{sum_i[31]}}, sum_i};
    wire signed [16:0] root = {1'b0, root_i};
    wire signed [15:0] gain = gain_i;
    wire signed [36:0] offset = {{5{offset_i[31]}}, offset_i};

    // z, its size brought near 2^16 by powers of two, times the root: 12 fraction bits
    reg signed [33:0] z_q;
    wire signed [46:0] placed = $signed({z_q, 13'd0}) >>> places_i;
    reg signed [21:0] placed_q;
    wire signed [38:0] rooted = placed_q * root + 39'sd65536;
    reg signed [19:0] normal_q;
    reg signed [36:0] scaled_q;

    gs_shift #(.IN(37), .OUT(16)) round (.clk_i(clk_i), .x_i(scaled_q), .shift_i(shift_i), .y_o(result_o));

    always @(posedge clk_i) begin
        z_q      <= product - sum;
        placed_q <= placed[46:21] == {26{placed[46]}} ? placed[21:0] : {placed[46], {21{!placed[46]}}};
        normal_q <= rooted[38:36] == {3{rooted[38]}} ? rooted[36:17] : {rooted[38], {19{!rooted[38]}}};
        scaled_q <= normal_q * gain + offset;
    end

    wire unused = &{1'b0, rooted[16:0]};
endmodule
`default_nettype wire
