// Load: outer memory to lines, rows or, transposed, columns of the unified memory, or to a side memory.
// Addresses run ahead of the data by as many bursts as the bus takes; the data are written as they come, one piece
// (what goes into one line) a cycle.
`default_nettype none
module gs_load #(
    parameter ROWS = 8,
    parameter COLUMNS = 8,
    parameter DEPTH = 8,
    parameter BUS_BYTES = 16,
    parameter BURST = 12,
    parameter LINE_ROWS = ROWS > COLUMNS ? ROWS : COLUMNS,  // follows
    parameter LINE_BYTES = LINE_ROWS * DEPTH  // follows
) (
    input  wire                    clk_i,
    input  wire                    rst_i,
    input  wire                    start_i,
    input  wire [511:0]            instruction_i,
    input  wire [255:0]            registers_i,
    output wire                    busy_o,
    // AXI4 read: address and data
    output wire                    ar_valid_o,
    output wire [31:0]             ar_address_o,
    output wire [7:0]              ar_length_o,
    input  wire                    ar_ready_i,
    input  wire                    r_valid_i,
    input  wire [8*BUS_BYTES-1:0]  r_data_i,
    output wire                    r_ready_o,
    // unified memory, side memories
    output wire                    l_en_o,
    output wire [23:0]             l_line_o,
    output wire [LINE_BYTES-1:0]   l_bytes_o,
    output wire [8*LINE_BYTES-1:0] l_data_o,
    output wire                    m_en_o,
    output wire [2:0]              m_space_o,
    output wire [31:0]             m_word_o,
    output wire [8*BUS_BYTES-1:0]  m_data_o
);
  /* verilator lint_off UNUSEDPARAM */
  `include "gs_isa.vh"
  /* verilator lint_on UNUSEDPARAM */
  localparam BUS = $clog2(BUS_BYTES);
  localparam CHUNK = $clog2(DEPTH);
  localparam BLOCK = $clog2(LINE_ROWS);
  localparam WORDS = LINE_BYTES >> BUS;  // of a line
  localparam CHUNKS = BUS_BYTES >> CHUNK;  // of a bus word
  localparam ROW_BITS = 8 * DEPTH;

  wire [2:0] space = instruction_i[LOAD_SPACE_LO+:LOAD_SPACE_W];
  wire [1:0] pattern = instruction_i[LOAD_PATTERN_LO+:LOAD_PATTERN_W];
  wire [31:0] value = registers_i[{instruction_i[LOAD_REGISTER_LO+:LOAD_REGISTER_W], 5'd0}+:32];
  wire [23:0] to_line = instruction_i[LOAD_TO_LINE_LO+:LOAD_TO_LINE_W];
  wire [7:0] to_row = instruction_i[LOAD_TO_ROW_LO+:LOAD_TO_ROW_W];
  wire [23:0] to_pitch = {8'd0, instruction_i[LOAD_TO_PITCH_LO+:LOAD_TO_PITCH_W]};
  wire [31:0] chunks = {16'd0, instruction_i[LOAD_CHUNKS_LO+:LOAD_CHUNKS_W]};
  wire [31:0] count = instruction_i[LOAD_COUNT_LO+:LOAD_COUNT_W];
  wire [31:0] row_pitch = instruction_i[LOAD_ROW_PITCH_LO+:LOAD_ROW_PITCH_W];
  wire add_count = instruction_i[LOAD_ADD_COUNT_LO];
  wire sram = space == SPACE_SRAM;
  wire transposed = sram && pattern == PATTERN_TRANSPOSED;
  wire rows = sram && pattern == PATTERN_ROWS;
  wire linear = !transposed && !rows;

  // ---- where and how much: products, then sums, then the first burst
  localparam REST = 3'd0, MULTIPLY = 3'd1, SUM = 3'd2, OPEN = 3'd3, RUN = 3'd4;
  reg [2:0] state_q;
  reg [31:0] address_q, count_q, words_q, row_count_q, words_left_q, rows_left_q;
  reg [23:0] first_line_q;
  wire [31:0] blocks = (value + LINE_ROWS) >> BLOCK;
  wire [31:0] row_words = ((chunks << CHUNK) + BUS_BYTES - 1) >> BUS;
  wire nothing = words_q == 0 || row_count_q == 0;

  // ---- the piece: what of the present bus word goes into one line
  reg [23:0] line_q;  // lines: the line; else: chunk 0 of the block of rows
  reg [BLOCK-1:0] row_q;  // row in the block
  reg [31:0] column_q;  // lines: words written; rows: chunk; transposed: byte of the row
  reg [BUS-1:0] byte_q;  // transposed: first byte of the piece in the bus word
  wire [31:0] lane = column_q & (CHUNKS - 1);
  wire [31:0] row_space = LINE_ROWS - {{(32 - BLOCK) {1'b0}}, row_q};
  wire [31:0] byte_space = BUS_BYTES - {{(32 - BUS) {1'b0}}, byte_q};
  wire [31:0] length = row_space < byte_space ? row_space : byte_space;
  wire fills_block = row_space <= byte_space;
  wire word_ends = linear || (rows ? lane == CHUNKS - 1 || column_q == chunks - 32'd1 : byte_space <= row_space);
  wire row_ends = word_ends && words_left_q == 32'd1;
  wire ends = row_ends && rows_left_q == 32'd1;
  wire piece = state_q == RUN && r_valid_i;
  wire line_ends = (column_q & (WORDS - 1)) == WORDS - 1;

  always @(posedge clk_i)
    if (rst_i) state_q <= REST;
    else
      case (state_q)
        REST: if (start_i) state_q <= MULTIPLY;
        MULTIPLY: begin
          address_q <= value * instruction_i[LOAD_ADDRESS_STEP_LO+:LOAD_ADDRESS_STEP_W];
          count_q <= blocks * instruction_i[LOAD_COUNT_STEP_LO+:LOAD_COUNT_STEP_W];
          first_line_q <= to_pitch * ({16'd0, to_row} >> BLOCK);
          state_q <= SUM;
        end
        SUM: begin
          address_q <= address_q + instruction_i[LOAD_ADDRESS_LO+:LOAD_ADDRESS_W];
          words_q <= linear ? count + count_q : row_words;
          row_count_q <= linear ? 32'd1 : add_count ? count + value : count;
          first_line_q <= linear ? to_line : to_line + first_line_q;
          state_q <= OPEN;
        end
        OPEN: begin
          words_left_q <= words_q;
          rows_left_q <= row_count_q;
          line_q <= first_line_q;
          row_q <= to_row[BLOCK-1:0];
          column_q <= 32'd0;
          byte_q <= {BUS{1'b0}};
          state_q <= nothing ? REST : RUN;
        end
        default:
        if (piece) begin
          if (word_ends) words_left_q <= row_ends ? words_q : words_left_q - 32'd1;
          if (row_ends) rows_left_q <= rows_left_q - 32'd1;
          if (ends) state_q <= REST;
          if (linear) begin
            column_q <= column_q + 32'd1;
            if (line_ends) line_q <= line_q + 24'd1;
          end else if (rows) begin
            column_q <= row_ends ? 32'd0 : column_q + 32'd1;
            if (row_ends) row_q <= row_q + 1'b1;
            if (row_ends && &row_q) line_q <= line_q + to_pitch;
          end else begin
            byte_q <= byte_q + length[BUS-1:0];  // 0 after a whole word
            if (row_ends) begin
              column_q <= column_q + 32'd1;
              row_q <= to_row[BLOCK-1:0];
              line_q <= first_line_q;
            end else begin
              row_q <= row_q + length[BLOCK-1:0];  // 0 after a whole block
              if (fills_block) line_q <= line_q + to_pitch;
            end
          end
        end
      endcase

  gs_bursts #(
      .BUS_BYTES(BUS_BYTES),
      .BURST(BURST)
  ) bursts (
      .clk_i(clk_i),
      .rst_i(rst_i),
      .start_i(state_q == OPEN),
      .address_i(address_q),
      .pitch_i(row_pitch),
      .words_i(words_q),
      .rows_i(row_count_q),
      .valid_o(ar_valid_o),
      .address_o(ar_address_o),
      .length_o(ar_length_o),
      .ready_i(ar_ready_i)
  );
  assign r_ready_o = state_q == RUN && word_ends;

  // ---- the write, a cycle later
  reg l_en_q, m_en_q;
  reg [8*BUS_BYTES-1:0] word_q;
  reg [31:0] place_q;  // lines: word in the line; rows: chunk in the bus word; transposed: byte in the chunk
  reg [BLOCK-1:0] first_q;
  reg [31:0] length_q;
  reg [BUS-1:0] turn_q;  // transposed: byte of the bus word that is meant for row 0
  reg [23:0] write_line_q;
  reg [31:0] m_word_q;

  wire [31:0] turn = {{(32 - BUS) {1'b0}}, byte_q} - {{(32 - BLOCK) {1'b0}}, row_q};
  wire [31:0] chunk = rows ? column_q : column_q >> CHUNK;

  wire unused = &{1'b0, instruction_i, turn, chunk};

  always @(posedge clk_i) begin
    l_en_q <= piece && sram && !rst_i;
    m_en_q <= piece && !sram && !rst_i;
    word_q <= r_data_i;
    place_q <= linear ? column_q & (WORDS - 1) : rows ? lane : column_q & (DEPTH - 1);
    first_q <= row_q;
    length_q <= rows ? 32'd1 : length;
    turn_q <= turn[BUS-1:0];
    write_line_q <= linear ? line_q : line_q + chunk[23:0];
    m_word_q <= {8'd0, to_line} + column_q;
  end

  wire [8*BUS_BYTES-1:0] turned = word_q >> {turn_q, 3'd0} | word_q << {{1'b0, ~turn_q} + 1'b1, 3'd0};
  wire [ROW_BITS-1:0] picked = word_q[ROW_BITS*place_q+:ROW_BITS];
  wire [DEPTH-1:0] byte_mask = {{(DEPTH - 1) {1'b0}}, 1'b1} << place_q;
  reg [8*LINE_BYTES-1:0] row_data;
  reg [LINE_BYTES-1:0] row_bytes;
  reg [31:0] from_first;
  integer r;
  always @*
    for (r = 0; r < LINE_ROWS; r = r + 1) begin
      from_first = r - {{(32 - BLOCK) {1'b0}}, first_q};
      row_data[r*ROW_BITS+:ROW_BITS] = rows ? picked : {DEPTH{turned[8*(r&(BUS_BYTES-1))+:8]}};
      row_bytes[r*DEPTH+:DEPTH] = from_first >= length_q ? {DEPTH{1'b0}} : rows ? {DEPTH{1'b1}} : byte_mask;
    end

  assign l_en_o = l_en_q;
  assign l_line_o = write_line_q;
  assign l_data_o = linear ? {WORDS{word_q}} : row_data;
  assign l_bytes_o = linear ? {{(LINE_BYTES - BUS_BYTES) {1'b0}}, {BUS_BYTES{1'b1}}} << (place_q << BUS) : row_bytes;
  assign m_en_o = m_en_q;
  assign m_space_o = space;
  assign m_word_o = m_word_q;
  assign m_data_o = word_q;
  assign busy_o = state_q != REST || l_en_q || m_en_q;
endmodule
`default_nettype wire
