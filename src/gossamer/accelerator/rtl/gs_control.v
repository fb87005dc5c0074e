// AXI4-Lite registers of 32 bits: start, status, program, R[1…7], counters. Writes while a program runs, to what cannot be
// written, or of less than a whole register are refused (SLVERR).
`default_nettype none
module gs_control (
    input  wire         clk_i,
    input  wire         rst_i,
    // AXI4-Lite
    input  wire         aw_valid_i,
    input  wire [7:0]   aw_address_i,
    output wire         aw_ready_o,
    input  wire         w_valid_i,
    input  wire [31:0]  w_data_i,
    input  wire [3:0]   w_bytes_i,
    output wire         w_ready_o,
    output wire         b_valid_o,
    output wire [1:0]   b_response_o,
    input  wire         b_ready_i,
    input  wire         ar_valid_i,
    input  wire [7:0]   ar_address_i,
    output wire         ar_ready_o,
    output wire         r_valid_o,
    output wire [31:0]  r_data_o,
    output wire [1:0]   r_response_o,
    input  wire         r_ready_i,
    // program
    output wire         start_o,
    output wire [31:0]  program_address_o,
    output wire [31:0]  program_count_o,
    output wire [255:0] registers_o,
    input  wire         busy_i,
    input  wire         running_i,
    input  wire         done_i,
    output wire         done_o,  // the last program has ended: an interrupt
    // counted while a program runs
    input  wire         load_busy_i,
    input  wire         store_busy_i,
    input  wire         compute_busy_i,
    input  wire         beat_read_i,
    input  wire         beat_written_i,
    // errors
    input  wire [5:0]   conflict_i,
    input  wire [5:0]   range_i,
    input  wire         bus_error_i,
    input  wire         illegal_i,
    input  wire [7:0]   opcode_i
);
  // word addresses; registers are at REGISTERS …, counters (two words each) at COUNTERS …
  localparam CONTROL = 6'h00, STATUS = 6'h01, PROGRAM_ADDRESS = 6'h02, PROGRAM_COUNT = 6'h03;
  localparam REGISTERS = 6'h08, COUNTERS = 6'h10;
  localparam OKAY = 2'd0, SLVERR = 2'd2;
  localparam NONE = 8'd0, CONFLICT = 8'd1, RANGE = 8'd2, BUS = 8'd3, ILLEGAL = 8'd4;

  // ---- writes: address and data are taken together
  reg b_valid_q, b_error_q, start_q;
  reg [31:0] program_address_q, program_count_q;
  reg [255:0] registers_q;
  wire write = aw_valid_i && w_valid_i && !b_valid_q;
  wire [5:0] target = aw_address_i[7:2];
  wire to_register = target[5:3] == REGISTERS[5:3] && target[2:0] != 3'd0;
  wire known = target == CONTROL || target == PROGRAM_ADDRESS || target == PROGRAM_COUNT || to_register;
  wire refused = busy_i || start_q || !known || w_bytes_i != 4'hf;
  wire accept = write && !refused;
  wire unused = &{1'b0, aw_address_i[1:0], ar_address_i[1:0]};

  always @(posedge clk_i)
    if (rst_i) begin
      b_valid_q <= 1'b0;
      start_q <= 1'b0;
      program_address_q <= 32'd0;
      program_count_q <= 32'd0;
      registers_q <= 256'd0;
    end else begin
      if (write) begin
        b_valid_q <= 1'b1;
        b_error_q <= refused;
      end else if (b_ready_i) b_valid_q <= 1'b0;
      start_q <= accept && target == CONTROL && w_data_i[0];
      if (accept && target == PROGRAM_ADDRESS) program_address_q <= w_data_i;
      if (accept && target == PROGRAM_COUNT) program_count_q <= w_data_i;
      if (accept && to_register) registers_q[{target[2:0], 5'd0}+:32] <= w_data_i;
    end

  assign aw_ready_o = write;
  assign w_ready_o = write;
  assign b_valid_o = b_valid_q;
  assign b_response_o = b_error_q ? SLVERR : OKAY;
  assign start_o = start_q;
  assign program_address_o = program_address_q;
  assign program_count_o = program_count_q;
  assign registers_o = registers_q;

  // ---- counters: cycles, load, store, compute, beats read, beats written
  reg [64*6-1:0] counters_q;
  wire [5:0] counts = {beat_written_i, beat_read_i, compute_busy_i, store_busy_i, load_busy_i, 1'b1};
  integer i;
  always @(posedge clk_i)
    for (i = 0; i < 6; i = i + 1)
    if (rst_i || start_q) counters_q[64*i+:64] <= 64'd0;
    else if (running_i && counts[i]) counters_q[64*i+:64] <= counters_q[64*i+:64] + 64'd1;

  // ---- status
  reg done_q, bus_error_q, illegal_q;
  reg [7:0] opcode_q;
  always @(posedge clk_i)
    if (rst_i || start_q) begin
      done_q <= 1'b0;
      bus_error_q <= 1'b0;
      illegal_q <= 1'b0;
    end else begin
      if (done_i) done_q <= 1'b1;
      if (bus_error_i) bus_error_q <= 1'b1;
      if (illegal_i) begin
        illegal_q <= 1'b1;
        opcode_q  <= opcode_i;
      end
    end
  assign done_o = done_q;

  reg [7:0] error, detail;
  always @* begin
    error  = NONE;
    detail = 8'd0;
    if (illegal_q) begin
      error  = ILLEGAL;
      detail = opcode_q;
    end else if (bus_error_q) error = BUS;
    else if (range_i != 0) begin
      error  = RANGE;
      detail = {2'd0, range_i};
    end else if (conflict_i != 0) begin
      error  = CONFLICT;
      detail = {2'd0, conflict_i};
    end
  end

  // ---- reads
  reg r_valid_q;
  reg [31:0] r_data_q, read;
  wire [5:0] source = ar_address_i[7:2];
  wire [511:0] counters = {128'd0, counters_q};
  always @* begin
    read = 32'd0;
    if (source == STATUS) read = {8'd0, detail, error, 6'd0, done_q, busy_i || start_q};
    if (source == PROGRAM_ADDRESS) read = program_address_q;
    if (source == PROGRAM_COUNT) read = program_count_q;
    if (source[5:3] == REGISTERS[5:3]) read = registers_q[{source[2:0], 5'd0}+:32];
    if (source[5:4] == COUNTERS[5:4]) read = counters[{source[3:0], 5'd0}+:32];
  end
  always @(posedge clk_i)
    if (rst_i) r_valid_q <= 1'b0;
    else if (!r_valid_q) begin
      r_valid_q <= ar_valid_i;
      r_data_q  <= read;
    end else if (r_ready_i) r_valid_q <= 1'b0;

  assign ar_ready_o = !r_valid_q;
  assign r_valid_o = r_valid_q;
  assign r_data_o = r_data_q;
  assign r_response_o = OKAY;
endmodule
`default_nettype wire
