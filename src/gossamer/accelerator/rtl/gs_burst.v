// The burst mapper: where in the memory a burst goes, so that consecutive bursts hit columns of an open row, then other
// banks, then other rows (Putra et al. 2020, DRMap, arXiv 2004.10341), whatever order the controller has its bits in.
// An address is, from its lowest bit, a byte of the burst (BURST bits), column, bank, row; each digit is put where the
// controller expects it. By default all stay where they are. Only wires.
`default_nettype none
module gs_burst #(
    parameter BURST = 12,
    parameter COLUMN = 0,
    parameter BANK = 0,
    parameter COLUMN_AT = BURST,
    parameter BANK_AT = BURST + COLUMN,
    parameter ROW_AT = BURST + COLUMN + BANK
) (
    input  wire [31:0] address_i,
    output wire [31:0] address_o
);
  localparam [31:0] ONE = 32'd1;
  wire [31:0] byte_digit = address_i & ((ONE << BURST) - ONE);
  wire [31:0] column = (address_i >> BURST) & ((ONE << COLUMN) - ONE);
  wire [31:0] bank = (address_i >> (BURST + COLUMN)) & ((ONE << BANK) - ONE);
  wire [31:0] row = address_i >> (BURST + COLUMN + BANK);
  assign address_o = byte_digit | column << COLUMN_AT | bank << BANK_AT | row << ROW_AT;
endmodule
`default_nettype wire
