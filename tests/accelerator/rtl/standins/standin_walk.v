// Walks over `count_i` lines: reads one a cycle, writes it two cycles later.
module standin_walk (
    input wire clk_i, input wire rst_i, input wire start_i, input wire [23:0] count_i,
    output wire read_o, output wire [23:0] read_index_o, output wire write_o, output wire [23:0] write_index_o,
    output wire busy_o
);
  reg [23:0] left_q, read_q, fetched_q, write_q;
  reg fetched, written;
  always @(posedge clk_i) begin
    if (rst_i) left_q <= 0;
    else if (start_i) begin
      left_q <= count_i;
      read_q <= 0;
    end else if (left_q != 0) begin
      left_q <= left_q - 1;
      read_q <= read_q + 1;
    end
    fetched <= left_q != 0 && !rst_i;
    fetched_q <= read_q;
    written <= fetched && !rst_i;
    write_q <= fetched_q;
  end
  assign read_o = left_q != 0;
  assign read_index_o = read_q;
  assign write_o = written;
  assign write_index_o = write_q;
  assign busy_o = read_o || fetched || written;
endmodule
