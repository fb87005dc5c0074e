// The engine: sequencer, three units side by side (load, store, compute), the memories between them; AXI4-Lite control
// and an AXI4 master of one identifier for the outer memory.
`default_nettype none
module gs_top #(
    parameter ROWS = 8,
    parameter COLUMNS = 8,
    parameter DEPTH = 8,
    parameter LANES = 4,
    parameter NORM_ROWS = 8,
    parameter FOUR_BIT = 1,
    parameter BANKS = 8,
    parameter BANK_LINES = 1024,
    parameter BUS_BYTES = 16,
    parameter PARAMETERS = 4096,
    parameter GROUPS = 1024,
    parameter TABLES = 4,
    parameter CHUNKS = 256,
    parameter INSTRUCTIONS = 1024,
    // where the memory controller expects the digits of an address: see gs_burst
    parameter MAP_BURST = 12,
    parameter MAP_COLUMN = 0,
    parameter MAP_BANK = 0,
    parameter MAP_COLUMN_AT = MAP_BURST,
    parameter MAP_BANK_AT = MAP_BURST + MAP_COLUMN,
    parameter MAP_ROW_AT = MAP_BURST + MAP_COLUMN + MAP_BANK
) (
    input  wire                   clk_i,
    input  wire                   rst_i,
    output wire                   interrupt_o,      // the last program has ended
    // AXI4-Lite slave
    input  wire                   s_axi_awvalid_i,
    input  wire [7:0]             s_axi_awaddr_i,
    output wire                   s_axi_awready_o,
    input  wire                   s_axi_wvalid_i,
    input  wire [31:0]            s_axi_wdata_i,
    input  wire [3:0]             s_axi_wstrb_i,
    output wire                   s_axi_wready_o,
    output wire                   s_axi_bvalid_o,
    output wire [1:0]             s_axi_bresp_o,
    input  wire                   s_axi_bready_i,
    input  wire                   s_axi_arvalid_i,
    input  wire [7:0]             s_axi_araddr_i,
    output wire                   s_axi_arready_o,
    output wire                   s_axi_rvalid_o,
    output wire [31:0]            s_axi_rdata_o,
    output wire [1:0]             s_axi_rresp_o,
    input  wire                   s_axi_rready_i,
    // AXI4 master
    output wire                   m_axi_arvalid_o,
    output wire [31:0]            m_axi_araddr_o,
    output wire [7:0]             m_axi_arlen_o,
    output wire [2:0]             m_axi_arsize_o,
    output wire [1:0]             m_axi_arburst_o,
    input  wire                   m_axi_arready_i,
    input  wire                   m_axi_rvalid_i,
    input  wire [8*BUS_BYTES-1:0] m_axi_rdata_i,
    input  wire [1:0]             m_axi_rresp_i,
    input  wire                   m_axi_rlast_i,    // not used: load counts for itself
    output wire                   m_axi_rready_o,
    output wire                   m_axi_awvalid_o,
    output wire [31:0]            m_axi_awaddr_o,
    output wire [7:0]             m_axi_awlen_o,
    output wire [2:0]             m_axi_awsize_o,
    output wire [1:0]             m_axi_awburst_o,
    input  wire                   m_axi_awready_i,
    output wire                   m_axi_wvalid_o,
    output wire [8*BUS_BYTES-1:0] m_axi_wdata_o,
    output wire [BUS_BYTES-1:0]   m_axi_wstrb_o,
    output wire                   m_axi_wlast_o,
    input  wire                   m_axi_wready_i,
    input  wire                   m_axi_bvalid_i,
    input  wire [1:0]             m_axi_bresp_i,
    output wire                   m_axi_bready_o
);
  /* verilator lint_off UNUSEDPARAM */
  `include "gs_isa.vh"
  /* verilator lint_on UNUSEDPARAM */
  localparam LINE_ROWS = ROWS > COLUMNS ? ROWS : COLUMNS;
  localparam LINE_BYTES = LINE_ROWS * DEPTH;
  localparam WIDTH = 8 * LINE_BYTES;
  localparam SIZE = $clog2(BUS_BYTES);
  localparam [1:0] INCR = 2'd1;

  wire unused = &{1'b0, m_axi_rlast_i, m_axi_rresp_i[0], m_axi_bresp_i[0]};

  wire start, busy, running, done, illegal;
  wire [7:0] opcode;
  wire [31:0] program_address, program_count;
  wire [255:0] registers;
  wire [5:0] conflict, range;

  wire [511:0] load_instruction, store_instruction, compute_instruction;
  wire load_start, store_start, gemm_start, norm_start, add_start;
  wire load_busy, store_busy, gemm_busy, norm_busy, add_busy;
  wire compute_busy = gemm_busy || norm_busy || add_busy;

  wire m_en;
  wire [2:0] m_space;
  wire [31:0] m_word;
  wire [8*BUS_BYTES-1:0] m_data;

  gs_control control (
      .clk_i(clk_i),
      .rst_i(rst_i),
      .aw_valid_i(s_axi_awvalid_i),
      .aw_address_i(s_axi_awaddr_i),
      .aw_ready_o(s_axi_awready_o),
      .w_valid_i(s_axi_wvalid_i),
      .w_data_i(s_axi_wdata_i),
      .w_bytes_i(s_axi_wstrb_i),
      .w_ready_o(s_axi_wready_o),
      .b_valid_o(s_axi_bvalid_o),
      .b_response_o(s_axi_bresp_o),
      .b_ready_i(s_axi_bready_i),
      .ar_valid_i(s_axi_arvalid_i),
      .ar_address_i(s_axi_araddr_i),
      .ar_ready_o(s_axi_arready_o),
      .r_valid_o(s_axi_rvalid_o),
      .r_data_o(s_axi_rdata_o),
      .r_response_o(s_axi_rresp_o),
      .r_ready_i(s_axi_rready_i),
      .start_o(start),
      .program_address_o(program_address),
      .program_count_o(program_count),
      .registers_o(registers),
      .busy_i(busy),
      .running_i(running),
      .done_i(done),
      .done_o(interrupt_o),
      .load_busy_i(load_busy),
      .store_busy_i(store_busy),
      .compute_busy_i(compute_busy),
      .beat_read_i(m_axi_rvalid_i && m_axi_rready_o),
      .beat_written_i(m_axi_wvalid_o && m_axi_wready_i),
      .conflict_i(conflict),
      .range_i(range),
      .bus_error_i((m_axi_rvalid_i && m_axi_rresp_i[1]) || (m_axi_bvalid_i && m_axi_bresp_i[1])),
      .illegal_i(illegal),
      .opcode_i(opcode)
  );

  gs_sequencer #(
      .BUS_BYTES(BUS_BYTES),
      .INSTRUCTIONS(INSTRUCTIONS)
  ) sequencer (
      .clk_i(clk_i),
      .rst_i(rst_i),
      .start_i(start),
      .address_i(program_address),
      .count_i(program_count),
      .busy_o(busy),
      .running_o(running),
      .done_o(done),
      .illegal_o(illegal),
      .opcode_o(opcode),
      .write_i(m_en && m_space == SPACE_INSTRUCTIONS),
      .word_i(m_word),
      .data_i(m_data),
      .load_o(load_instruction),
      .load_start_o(load_start),
      .load_busy_i(load_busy),
      .store_o(store_instruction),
      .store_start_o(store_start),
      .store_busy_i(store_busy),
      .compute_o(compute_instruction),
      .gemm_start_o(gemm_start),
      .norm_start_o(norm_start),
      .add_start_o(add_start),
      .compute_busy_i(compute_busy)
  );

  // ---- transfers
  wire l_en, s_en;
  wire [31:0] read_address, write_address;
  wire [23:0] l_line, s_line;
  wire [LINE_BYTES-1:0] l_bytes;
  wire [WIDTH-1:0] l_data, s_data;

  gs_load #(
      .ROWS(ROWS),
      .COLUMNS(COLUMNS),
      .DEPTH(DEPTH),
      .BUS_BYTES(BUS_BYTES),
      .BURST(MAP_BURST)
  ) load (
      .clk_i(clk_i),
      .rst_i(rst_i),
      .start_i(load_start),
      .instruction_i(load_instruction),
      .registers_i(registers),
      .busy_o(load_busy),
      .ar_valid_o(m_axi_arvalid_o),
      .ar_address_o(read_address),
      .ar_length_o(m_axi_arlen_o),
      .ar_ready_i(m_axi_arready_i),
      .r_valid_i(m_axi_rvalid_i),
      .r_data_i(m_axi_rdata_i),
      .r_ready_o(m_axi_rready_o),
      .l_en_o(l_en),
      .l_line_o(l_line),
      .l_bytes_o(l_bytes),
      .l_data_o(l_data),
      .m_en_o(m_en),
      .m_space_o(m_space),
      .m_word_o(m_word),
      .m_data_o(m_data)
  );
  assign m_axi_arsize_o  = SIZE[2:0];
  assign m_axi_arburst_o = INCR;

  gs_store #(
      .ROWS(ROWS),
      .COLUMNS(COLUMNS),
      .DEPTH(DEPTH),
      .BUS_BYTES(BUS_BYTES),
      .BURST(MAP_BURST)
  ) store (
      .clk_i(clk_i),
      .rst_i(rst_i),
      .start_i(store_start),
      .instruction_i(store_instruction),
      .registers_i(registers),
      .busy_o(store_busy),
      .s_en_o(s_en),
      .s_line_o(s_line),
      .s_data_i(s_data),
      .aw_valid_o(m_axi_awvalid_o),
      .aw_address_o(write_address),
      .aw_length_o(m_axi_awlen_o),
      .aw_ready_i(m_axi_awready_i),
      .w_valid_o(m_axi_wvalid_o),
      .w_data_o(m_axi_wdata_o),
      .w_bytes_o(m_axi_wstrb_o),
      .w_last_o(m_axi_wlast_o),
      .w_ready_i(m_axi_wready_i),
      .b_valid_i(m_axi_bvalid_i),
      .b_ready_o(m_axi_bready_o)
  );
  assign m_axi_awsize_o  = SIZE[2:0];
  assign m_axi_awburst_o = INCR;

  gs_burst #(
      .BURST(MAP_BURST),
      .COLUMN(MAP_COLUMN),
      .BANK(MAP_BANK),
      .COLUMN_AT(MAP_COLUMN_AT),
      .BANK_AT(MAP_BANK_AT),
      .ROW_AT(MAP_ROW_AT)
  ) read_map (
      .address_i(read_address),
      .address_o(m_axi_araddr_o)
  );

  gs_burst #(
      .BURST(MAP_BURST),
      .COLUMN(MAP_COLUMN),
      .BANK(MAP_BANK),
      .COLUMN_AT(MAP_COLUMN_AT),
      .BANK_AT(MAP_BANK_AT),
      .ROW_AT(MAP_ROW_AT)
  ) write_map (
      .address_i(write_address),
      .address_o(m_axi_awaddr_o)
  );

  // ---- compute: one unit at a time drives the memory's ports, the others keep still
  wire gemm_a_en, gemm_w_en, gemm_x_en, gemm_o_en, gemm_p_en;
  wire norm_a_en, norm_o_en, norm_p_en;
  wire add_a_en, add_x_en, add_o_en;
  wire [23:0] gemm_a_line, gemm_w_line, gemm_x_line, gemm_o_line, gemm_p_entry;
  wire [23:0] norm_a_line, norm_o_line, norm_p_entry;
  wire [23:0] add_a_line, add_x_line, add_o_line;
  wire [LINE_ROWS-1:0] gemm_o_rows, norm_o_rows, add_o_rows;
  wire [WIDTH-1:0] gemm_o_data, norm_o_data, add_o_data;
  wire [WIDTH-1:0] a_data, w_data, x_data;
  wire [64*LANES-1:0] p_data;

  gs_gemm #(
      .ROWS(ROWS),
      .COLUMNS(COLUMNS),
      .DEPTH(DEPTH),
      .LANES(LANES),
      .FOUR_BIT(FOUR_BIT),
      .BUS_BYTES(BUS_BYTES),
      .GROUPS(GROUPS),
      .TABLES(TABLES),
      .CHUNKS(CHUNKS)
  ) gemm (
      .clk_i(clk_i),
      .rst_i(rst_i),
      .start_i(gemm_start),
      .instruction_i(compute_instruction),
      .registers_i(registers),
      .busy_o(gemm_busy),
      .a_en_o(gemm_a_en),
      .a_line_o(gemm_a_line),
      .a_data_i(a_data),
      .w_en_o(gemm_w_en),
      .w_line_o(gemm_w_line),
      .w_data_i(w_data),
      .x_en_o(gemm_x_en),
      .x_line_o(gemm_x_line),
      .x_data_i(x_data),
      .o_en_o(gemm_o_en),
      .o_line_o(gemm_o_line),
      .o_rows_o(gemm_o_rows),
      .o_data_o(gemm_o_data),
      .p_en_o(gemm_p_en),
      .p_entry_o(gemm_p_entry),
      .p_data_i(p_data),
      .m_en_i(m_en),
      .m_space_i(m_space),
      .m_word_i(m_word),
      .m_data_i(m_data)
  );

  gs_norm #(
      .ROWS(ROWS),
      .COLUMNS(COLUMNS),
      .DEPTH(DEPTH),
      .LANES(LANES),
      .NORM_ROWS(NORM_ROWS)
  ) norm (
      .clk_i(clk_i),
      .rst_i(rst_i),
      .start_i(norm_start),
      .instruction_i(compute_instruction),
      .registers_i(registers),
      .busy_o(norm_busy),
      .a_en_o(norm_a_en),
      .a_line_o(norm_a_line),
      .a_data_i(a_data),
      .o_en_o(norm_o_en),
      .o_line_o(norm_o_line),
      .o_rows_o(norm_o_rows),
      .o_data_o(norm_o_data),
      .p_en_o(norm_p_en),
      .p_entry_o(norm_p_entry),
      .p_data_i(p_data)
  );

  gs_add #(
      .ROWS(ROWS),
      .COLUMNS(COLUMNS),
      .DEPTH(DEPTH),
      .LANES(LANES),
      .NORM_ROWS(NORM_ROWS)
  ) add (
      .clk_i(clk_i),
      .rst_i(rst_i),
      .start_i(add_start),
      .instruction_i(compute_instruction),
      .registers_i(registers),
      .busy_o(add_busy),
      .a_en_o(add_a_en),
      .a_line_o(add_a_line),
      .a_data_i(a_data),
      .x_en_o(add_x_en),
      .x_line_o(add_x_line),
      .x_data_i(x_data),
      .o_en_o(add_o_en),
      .o_line_o(add_o_line),
      .o_rows_o(add_o_rows),
      .o_data_o(add_o_data)
  );

  // ---- memories
  gs_memory #(
      .ROWS(ROWS),
      .COLUMNS(COLUMNS),
      .DEPTH(DEPTH),
      .BANKS(BANKS),
      .BANK_LINES(BANK_LINES)
  ) memory (
      .clk_i(clk_i),
      .rst_i(rst_i),
      .clear_i(start),
      .a_en_i(gemm_a_en || norm_a_en || add_a_en),
      .a_line_i(gemm_a_en ? gemm_a_line : norm_a_en ? norm_a_line : add_a_line),
      .a_data_o(a_data),
      .w_en_i(gemm_w_en),
      .w_line_i(gemm_w_line),
      .w_data_o(w_data),
      .x_en_i(gemm_x_en || add_x_en),
      .x_line_i(gemm_x_en ? gemm_x_line : add_x_line),
      .x_data_o(x_data),
      .s_en_i(s_en),
      .s_line_i(s_line),
      .s_data_o(s_data),
      .o_en_i(gemm_o_en || norm_o_en || add_o_en),
      .o_line_i(gemm_o_en ? gemm_o_line : norm_o_en ? norm_o_line : add_o_line),
      .o_rows_i(gemm_o_en ? gemm_o_rows : norm_o_en ? norm_o_rows : add_o_rows),
      .o_data_i(gemm_o_en ? gemm_o_data : norm_o_en ? norm_o_data : add_o_data),
      .l_en_i(l_en),
      .l_line_i(l_line),
      .l_bytes_i(l_bytes),
      .l_data_i(l_data),
      .conflict_o(conflict),
      .range_o(range)
  );

  gs_parameters #(
      .LANES(LANES),
      .BUS_BYTES(BUS_BYTES),
      .PARAMETERS(PARAMETERS)
  ) parameters (
      .clk_i(clk_i),
      .write_i(m_en && m_space == SPACE_PARAMETERS),
      .word_i(m_word),
      .data_i(m_data),
      .p_en_i(gemm_p_en || norm_p_en),
      .p_entry_i(gemm_p_en ? gemm_p_entry : norm_p_entry),
      .p_data_o(p_data)
  );
endmodule
`default_nettype wire
