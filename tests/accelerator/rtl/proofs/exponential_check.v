// 255 * 2^(-i/64) as a product of one factor for each bit of i, in 24 fraction bits, rounded.
`default_nettype none
module exponential_check (
    input  wire [5:0] index_i,
    output wire [7:0] exponential_o
);
    function [31:0] times(input [31:0] x, input on, input [24:0] factor);
        reg [56:0] product;
        begin
            product = x * factor + 57'd8388608;
            times = on ? product[55:24] : x;
        end
    endfunction
    // 2^24 * 2^(-1/2), 2^(-1/4), ... 2^(-1/64)
    wire [31:0] exponential = times(times(times(times(times(times(32'd255 << 24,
        index_i[5], 25'd11863283), index_i[4], 25'd14107901), index_i[3], 25'd15384775),
        index_i[2], 25'd16065917), index_i[1], 25'd16417715), index_i[0], 25'd16596492);
    assign exponential_o = exponential[31:24] + {7'd0, exponential[23]};
endmodule
`default_nettype wire
