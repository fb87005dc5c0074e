// The unified memory: single-port banks behind four read ports (a, w, x, s) and two write ports (o: rows, l: bytes).
// Software places tensors so that no two ports meet in a bank; when they do, or a line does not exist, the ports
// concerned are held (`conflict_o`, `range_o`: bits a, w, x, s, o, l from 0) until `clear_i`.
`default_nettype none
module gs_memory #(
    parameter ROWS = 8,
    parameter COLUMNS = 8,
    parameter DEPTH = 8,
    parameter BANKS = 8,
    parameter BANK_LINES = 1024,
    parameter LINE_ROWS = ROWS > COLUMNS ? ROWS : COLUMNS,  // follows
    parameter LINE_BYTES = LINE_ROWS * DEPTH  // follows
) (
    input  wire                    clk_i,
    input  wire                    rst_i,
    input  wire                    clear_i,
    input  wire                    a_en_i,
    input  wire [23:0]             a_line_i,
    output wire [8*LINE_BYTES-1:0] a_data_o,
    input  wire                    w_en_i,
    input  wire [23:0]             w_line_i,
    output wire [8*LINE_BYTES-1:0] w_data_o,
    input  wire                    x_en_i,
    input  wire [23:0]             x_line_i,
    output wire [8*LINE_BYTES-1:0] x_data_o,
    input  wire                    s_en_i,
    input  wire [23:0]             s_line_i,
    output wire [8*LINE_BYTES-1:0] s_data_o,
    input  wire                    o_en_i,
    input  wire [23:0]             o_line_i,
    input  wire [LINE_ROWS-1:0]    o_rows_i,
    input  wire [8*LINE_BYTES-1:0] o_data_i,
    input  wire                    l_en_i,
    input  wire [23:0]             l_line_i,
    input  wire [LINE_BYTES-1:0]   l_bytes_i,
    input  wire [8*LINE_BYTES-1:0] l_data_i,
    output wire [5:0]              conflict_o,
    output wire [5:0]              range_o
);
  localparam PORTS = 6;
  localparam O = 4;
  localparam L = 5;
  localparam LINE = $clog2(BANK_LINES);
  localparam BANK = $clog2(BANKS);
  localparam WIDTH = 8 * LINE_BYTES;

  wire [PORTS-1:0] en = {l_en_i, o_en_i, s_en_i, x_en_i, w_en_i, a_en_i};
  wire [32*PORTS-1:0] lines = {
    8'd0, l_line_i, 8'd0, o_line_i, 8'd0, s_line_i, 8'd0, x_line_i, 8'd0, w_line_i, 8'd0, a_line_i
  };
  wire [BANKS*WIDTH-1:0] read;
  wire [BANKS*PORTS-1:0] met;
  reg [LINE_BYTES-1:0] o_bytes;
  integer r, p, b;

  always @* for (r = 0; r < LINE_ROWS; r = r + 1) o_bytes[r*DEPTH+:DEPTH] = {DEPTH{o_rows_i[r]}};

  genvar n;
  generate
    for (n = 0; n < BANKS; n = n + 1) begin : bank
      reg [PORTS-1:0] hit;
      reg [LINE-1:0] line;
      integer i;
      always @* begin
        line = {LINE{1'b0}};
        for (i = 0; i < PORTS; i = i + 1) begin
          hit[i] = en[i] && lines[32*i+LINE+:BANK] == n[BANK-1:0];
          if (hit[i]) line = line | lines[32*i+:LINE];
        end
      end
      assign met[n*PORTS+:PORTS] = |(hit & (hit - 1'b1)) ? hit : {PORTS{1'b0}};

      gs_bank #(
          .BYTES(LINE_BYTES),
          .LINES(BANK_LINES)
      ) memory (
          .clk_i(clk_i),
          .en_i(|hit),
          .write_i(hit[O] || hit[L]),
          .line_i(line),
          .bytes_i(hit[L] ? l_bytes_i : o_bytes),
          .data_i(hit[L] ? l_data_i : o_data_i),
          .data_o(read[n*WIDTH+:WIDTH])
      );
    end
  endgenerate

  reg [BANK-1:0] a_bank_q, w_bank_q, x_bank_q, s_bank_q;
  always @(posedge clk_i) begin
    if (a_en_i) a_bank_q <= lines[32*0+LINE+:BANK];
    if (w_en_i) w_bank_q <= lines[32*1+LINE+:BANK];
    if (x_en_i) x_bank_q <= lines[32*2+LINE+:BANK];
    if (s_en_i) s_bank_q <= lines[32*3+LINE+:BANK];
  end
  assign a_data_o = read[a_bank_q*WIDTH+:WIDTH];
  assign w_data_o = read[w_bank_q*WIDTH+:WIDTH];
  assign x_data_o = read[x_bank_q*WIDTH+:WIDTH];
  assign s_data_o = read[s_bank_q*WIDTH+:WIDTH];

  // errors: the ports of the first conflict, and of the first line out of range
  reg [PORTS-1:0] conflict, range, conflict_q, range_q;
  always @* begin
    conflict = {PORTS{1'b0}};
    for (b = 0; b < BANKS; b = b + 1) conflict = conflict | met[b*PORTS+:PORTS];
    for (p = 0; p < PORTS; p = p + 1) range[p] = en[p] && lines[32*p+:32] >> (LINE + BANK) != 0;
  end
  always @(posedge clk_i)
    if (rst_i || clear_i) begin
      conflict_q <= {PORTS{1'b0}};
      range_q <= {PORTS{1'b0}};
    end else begin
      if (conflict_q == 0) conflict_q <= conflict;
      if (range_q == 0) range_q <= range;
    end
  assign conflict_o = conflict_q;
  assign range_o = range_q;
endmodule
`default_nettype wire
