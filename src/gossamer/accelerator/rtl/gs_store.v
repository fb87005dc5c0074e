// Store: lines, or rows chunk by chunk, of the unified memory to the outer memory.
// One bus word a cycle: its line is read, the word is picked and queued, then address and data leave side by side.
`default_nettype none
module gs_store #(
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
    // unified memory
    output wire                    s_en_o,
    output wire [23:0]             s_line_o,
    input  wire [8*LINE_BYTES-1:0] s_data_i,
    // AXI4 write: address, data, response
    output wire                    aw_valid_o,
    output wire [31:0]             aw_address_o,
    output wire [7:0]              aw_length_o,
    input  wire                    aw_ready_i,
    output wire                    w_valid_o,
    output wire [8*BUS_BYTES-1:0]  w_data_o,
    output wire [BUS_BYTES-1:0]    w_bytes_o,
    output wire                    w_last_o,
    input  wire                    w_ready_i,
    input  wire                    b_valid_i,
    output wire                    b_ready_o
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
  localparam WITHIN = BURST - BUS > 8 ? 8 : BURST - BUS;  // a burst stays within so many bits of word addresses

  wire [1:0] pattern = instruction_i[STORE_PATTERN_LO+:STORE_PATTERN_W];
  wire [31:0] value = registers_i[{instruction_i[STORE_REGISTER_LO+:STORE_REGISTER_W], 5'd0}+:32];
  wire [31:0] address = instruction_i[STORE_ADDRESS_LO+:STORE_ADDRESS_W];
  wire [23:0] source_line = instruction_i[STORE_SOURCE_LINE_LO+:STORE_SOURCE_LINE_W];
  wire [7:0] source_row = instruction_i[STORE_SOURCE_ROW_LO+:STORE_SOURCE_ROW_W];
  wire [23:0] source_pitch = {8'd0, instruction_i[STORE_SOURCE_PITCH_LO+:STORE_SOURCE_PITCH_W]};
  wire [31:0] chunks = {16'd0, instruction_i[STORE_CHUNKS_LO+:STORE_CHUNKS_W]};
  wire [31:0] count = instruction_i[STORE_COUNT_LO+:STORE_COUNT_W];
  wire [31:0] row = instruction_i[STORE_ROW_LO+:STORE_ROW_W];
  wire [31:0] block_pitch = instruction_i[STORE_BLOCK_PITCH_LO+:STORE_BLOCK_PITCH_W];
  wire [31:0] row_pitch = instruction_i[STORE_ROW_PITCH_LO+:STORE_ROW_PITCH_W];
  wire [31:0] chunk_pitch = instruction_i[STORE_CHUNK_PITCH_LO+:STORE_CHUNK_PITCH_W];
  wire rows = pattern == PATTERN_ROWS;

  // ---- where: the row's number, products, sums
  localparam REST = 3'd0, ADD = 3'd1, MULTIPLY = 3'd2, SUM = 3'd3, RUN = 3'd4;
  reg [2:0] state_q;
  reg [31:0] row_number_q;
  reg [31:0] block_q, row_address_q, address_q;  // of the block of rows, the row, the word or chunk
  reg [BLOCK-1:0] to_row_q;  // row in the block, there
  reg [31:0] left_q;  // lines or rows left
  reg [23:0] line_q;  // lines: the line; rows: chunk 0 of the block
  reg [BLOCK-1:0] from_row_q;  // row in the block, here
  reg [31:0] column_q;  // lines: word of the line; rows: chunk
  reg opens_q;  // the next word opens a burst

  wire [31:0] columns = rows ? chunks : WORDS;
  wire column_ends = column_q == columns - 32'd1;
  wire ends = column_ends && left_q == 32'd1;
  wire [WITHIN-1:0] in_burst = address_q[BUS+:WITHIN];
  wire closes = rows || ends || &in_burst;
  wire [31:0] words_left = left_q * WORDS - column_q;
  wire [31:0] edge_words = (32'd1 << WITHIN) - {{(32 - WITHIN) {1'b0}}, in_burst};
  wire [31:0] length = rows ? 32'd0 : (words_left < edge_words ? words_left : edge_words) - 32'd1;
  wire unused = &{1'b0, instruction_i, length};
  wire room;
  wire step = state_q == RUN && room;

  always @(posedge clk_i)
    if (rst_i) state_q <= REST;
    else
      case (state_q)
        REST: if (start_i) state_q <= ADD;
        ADD: begin
          row_number_q <= row + value;
          state_q <= MULTIPLY;
        end
        MULTIPLY: begin
          block_q <= (row_number_q >> BLOCK) * block_pitch;
          row_address_q <= (row_number_q & (LINE_ROWS - 1)) * row_pitch;
          line_q <= source_pitch * ({16'd0, source_row} >> BLOCK);
          to_row_q <= row_number_q[BLOCK-1:0];
          state_q <= SUM;
        end
        SUM: begin
          block_q <= address + block_q;
          row_address_q <= address + block_q + row_address_q;
          address_q <= rows ? address + block_q + row_address_q : address;
          line_q <= rows ? source_line + line_q : source_line;
          from_row_q <= source_row[BLOCK-1:0];
          left_q <= count;
          column_q <= 32'd0;
          opens_q <= 1'b1;
          state_q <= count == 0 || columns == 0 ? REST : RUN;
        end
        default:
        if (step) begin
          opens_q  <= closes;
          column_q <= column_ends ? 32'd0 : column_q + 32'd1;
          if (column_ends) left_q <= left_q - 32'd1;
          if (ends) state_q <= REST;
          if (!rows) begin
            address_q <= address_q + BUS_BYTES;
            if (column_ends) line_q <= line_q + 24'd1;
          end else if (!column_ends) address_q <= address_q + chunk_pitch;
          else begin
            from_row_q <= from_row_q + 1'b1;
            if (&from_row_q) line_q <= line_q + source_pitch;
            to_row_q <= to_row_q + 1'b1;
            if (&to_row_q) block_q <= block_q + block_pitch;
            row_address_q <= &to_row_q ? block_q + block_pitch : row_address_q + row_pitch;
            address_q <= &to_row_q ? block_q + block_pitch : row_address_q + row_pitch;
          end
        end
      endcase

  assign s_en_o   = step;
  assign s_line_o = rows ? line_q + column_q[23:0] : line_q;

  // ---- the line arrives: its word is picked
  reg read_q, read_opens_q, read_closes_q;
  reg [31:0] read_address_q, read_place_q;
  reg [7:0] read_length_q;
  always @(posedge clk_i) begin
    read_q <= step && !rst_i;
    read_opens_q <= opens_q || rows;
    read_closes_q <= closes;
    read_address_q <= address_q;
    read_place_q <= rows ? {{(32 - BLOCK) {1'b0}}, from_row_q} : column_q;
    read_length_q <= length[7:0];
  end
  wire [ROW_BITS-1:0] picked = s_data_i[ROW_BITS*read_place_q+:ROW_BITS];
  wire [BUS-1:0] in_word = read_address_q[BUS-1:0];
  wire [8*BUS_BYTES-1:0] word = rows ? {CHUNKS{picked}} : s_data_i[8*BUS_BYTES*read_place_q+:8*BUS_BYTES];
  wire [BUS_BYTES-1:0] all = {BUS_BYTES{1'b1}};
  wire [BUS_BYTES-1:0] bytes = rows ? (all >> (BUS_BYTES - DEPTH)) << in_word : all;

  // ---- the queue: what is read is always taken
  localparam ENTRY = 8 * BUS_BYTES + BUS_BYTES + 32 + 8 + 2;
  reg [ENTRY-1:0] queue_q[0:3];
  reg [1:0] put_q, take_q;
  reg [2:0] held_q;
  reg aw_sent_q, w_sent_q;
  wire opens;
  wire filled = held_q != 0;
  assign {opens, w_last_o, aw_length_o, aw_address_o, w_bytes_o, w_data_o} = queue_q[take_q];
  assign aw_valid_o = filled && opens && !aw_sent_q;
  assign w_valid_o = filled && !w_sent_q;
  wire aw_done = !opens || aw_sent_q || aw_ready_i;
  wire w_done = w_sent_q || w_ready_i;
  wire take = filled && aw_done && w_done;
  assign room = held_q + {2'd0, read_q} < 3'd4;

  reg [31:0] unanswered_q;
  assign b_ready_o = 1'b1;
  wire sent = aw_valid_o && aw_ready_i;

  always @(posedge clk_i) begin
    if (read_q)
      queue_q[put_q] <= {read_opens_q, read_closes_q, read_length_q, {read_address_q[31:BUS], {BUS{1'b0}}}, bytes, word};
    if (rst_i) begin
      put_q <= 2'd0;
      take_q <= 2'd0;
      held_q <= 3'd0;
      aw_sent_q <= 1'b0;
      w_sent_q <= 1'b0;
      unanswered_q <= 32'd0;
    end else begin
      if (read_q) put_q <= put_q + 2'd1;
      if (take) take_q <= take_q + 2'd1;
      held_q <= held_q + {2'd0, read_q} - {2'd0, take};
      aw_sent_q <= !take && (aw_sent_q || sent);
      w_sent_q <= !take && (w_sent_q || (w_valid_o && w_ready_i));
      unanswered_q <= unanswered_q + {31'd0, sent} - {31'd0, b_valid_i};
    end
  end

  assign busy_o = state_q != REST || read_q || filled || unanswered_q != 0;
endmodule
`default_nettype wire
