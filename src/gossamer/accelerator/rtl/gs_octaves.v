// Octaves of scores: for each chunk (or row tile), each row's maximum. Data come in the cycle after the read.
`default_nettype none
module gs_octaves #(
    parameter ROWS   = 8,
    parameter CHUNKS = 256
) (
    input  wire                      clk_i,
    input  wire                      write_i,
    input  wire [$clog2(CHUNKS)-1:0] write_chunk_i,
    input  wire [10*ROWS-1:0]        data_i,
    input  wire                      read_i,
    input  wire [$clog2(CHUNKS)-1:0] read_chunk_i,
    output reg  [10*ROWS-1:0]        data_o
);
    reg [10*ROWS-1:0] mem[0:CHUNKS-1];

    always @(posedge clk_i) begin
        if (write_i) mem[write_chunk_i] <= data_i;
        if (read_i) data_o <= mem[read_chunk_i];
    end
endmodule
`default_nettype wire
