// Every seed is the whole number nearest to 2^23 / sqrt(m), m = 256 * index + 128: (2s - 1)^2 m <= 2^48 < (2s + 1)^2 m.
`default_nettype none
module seeds_check (
    input wire [7:0] index_i
);
    wire [15:0] seed;
    gs_root_seeds seeds (.index_i(index_i), .seed_o(seed));
    wire [51:0] m = {36'd0, index_i, 8'd128};
    wire [51:0] less = {35'd0, seed, 1'b0} - 52'd1;
    wire [51:0] more = {35'd0, seed, 1'b0} + 52'd1;
    always @*
        if (index_i >= 8'd64) begin
            assert (less * less * m <= 52'd1 << 48);
            assert (more * more * m > 52'd1 << 48);
        end
endmodule
`default_nettype wire
