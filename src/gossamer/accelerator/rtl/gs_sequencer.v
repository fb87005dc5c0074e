// The instruction ring and its sequencer. On start, `count_i` instructions are loaded from `address_i` to ring entry 0;
// then they are issued in order from entry 0, each when its unit is free, until End.
`default_nettype none
module gs_sequencer #(
    parameter BUS_BYTES = 16,
    parameter INSTRUCTIONS = 1024
) (
    input  wire                   clk_i,
    input  wire                   rst_i,
    input  wire                   start_i,
    input  wire [31:0]            address_i,
    input  wire [31:0]            count_i,
    output wire                   busy_o,
    output wire                   running_o,  // from the fetch of the first instruction to End
    output wire                   done_o,  // one cycle
    output wire                   illegal_o,  // an unknown opcode ended the program: one cycle, with its number
    output wire [7:0]             opcode_o,
    // ring, written by load
    input  wire                   write_i,
    input  wire [31:0]            word_i,
    input  wire [8*BUS_BYTES-1:0] data_i,
    // units
    output wire [511:0]           load_o,
    output wire                   load_start_o,
    input  wire                   load_busy_i,
    output wire [511:0]           store_o,
    output wire                   store_start_o,
    input  wire                   store_busy_i,
    output wire [511:0]           compute_o,
    output wire                   gemm_start_o,
    output wire                   norm_start_o,
    output wire                   add_start_o,
    input  wire                   compute_busy_i
);
  /* verilator lint_off UNUSEDPARAM */
  `include "gs_isa.vh"
  /* verilator lint_on UNUSEDPARAM */
  localparam REST = 3'd0, BOOT = 3'd1, FETCH = 3'd2, ISSUE = 3'd3, STOP = 3'd4;
  localparam RING = $clog2(INSTRUCTIONS);

  reg [2:0] state_q;
  reg [RING-1:0] counter_q;
  wire [511:0] instruction;

  gs_side #(
      .BYTES(64 * INSTRUCTIONS),
      .WRITE_BYTES(BUS_BYTES),
      .READ_BYTES(64)
  ) ring (
      .clk_i(clk_i),
      .write_i(write_i),
      .write_word_i(word_i),
      .write_data_i(data_i),
      .read_i(state_q == FETCH),
      .read_word_i({{(32 - RING) {1'b0}}, counter_q}),
      .read_data_o(instruction)
  );

  reg [511:0] load_q, store_q, compute_q;
  reg load_start_q, store_start_q, gemm_start_q, norm_start_q, add_start_q;
  wire load_free = !load_busy_i && !load_start_q;
  wire store_free = !store_busy_i && !store_start_q;
  wire compute_free = !compute_busy_i && !gemm_start_q && !norm_start_q && !add_start_q;
  wire all_free = load_free && store_free && compute_free;

  wire [7:0] opcode = instruction[7:0];
  wire is_load = opcode == OP_LOAD;
  wire is_store = opcode == OP_STORE;
  wire is_gemm = opcode == OP_GEMM;
  wire is_norm = opcode == OP_NORM;
  wire is_add = opcode == OP_ADD;
  wire is_compute = is_gemm || is_norm || is_add;
  wire is_fence = opcode == OP_FENCE;
  wire is_end = opcode == OP_END;
  wire illegal = !(is_load || is_store || is_compute || is_fence || is_end);
  wire fence_free = (load_free || !instruction[FENCE_LOAD_LO]) && (store_free || !instruction[FENCE_STORE_LO])
      && (compute_free || !instruction[FENCE_COMPUTE_LO]);
  wire go = is_load ? load_free : is_store ? store_free : is_compute ? compute_free : is_fence ? fence_free : all_free;
  wire issue = state_q == ISSUE && go;

  // the program itself comes by a Load
  reg [511:0] boot;
  always @* begin
    boot = 512'd0;
    boot[7:0] = OP_LOAD;
    boot[LOAD_SPACE_LO+:LOAD_SPACE_W] = SPACE_INSTRUCTIONS;
    boot[LOAD_ADDRESS_LO+:LOAD_ADDRESS_W] = address_i;
    boot[LOAD_COUNT_LO+:LOAD_COUNT_W] = ((count_i << 6) + BUS_BYTES - 1) >> $clog2(BUS_BYTES);
  end

  always @(posedge clk_i) begin
    load_start_q <= 1'b0;
    store_start_q <= 1'b0;
    gemm_start_q <= 1'b0;
    norm_start_q <= 1'b0;
    add_start_q <= 1'b0;
    if (rst_i) state_q <= REST;
    else
      case (state_q)
        REST:
        if (start_i) begin
          load_q <= boot;
          load_start_q <= 1'b1;
          state_q <= BOOT;
        end
        BOOT: begin
          counter_q <= {RING{1'b0}};
          if (load_free) state_q <= FETCH;
        end
        FETCH: state_q <= ISSUE;
        ISSUE:
        if (go) begin
          state_q   <= illegal || is_end ? STOP : FETCH;
          counter_q <= counter_q + 1'b1;
          if (is_load) load_q <= instruction;
          if (is_store) store_q <= instruction;
          if (is_compute) compute_q <= instruction;
          load_start_q <= is_load;
          store_start_q <= is_store;
          gemm_start_q <= is_gemm;
          norm_start_q <= is_norm;
          add_start_q <= is_add;
        end
        default: state_q <= REST;
      endcase
  end

  assign busy_o = state_q != REST;
  assign running_o = state_q == FETCH || state_q == ISSUE;
  assign done_o = state_q == STOP;
  assign illegal_o = issue && illegal;
  assign opcode_o = opcode;
  assign load_o = load_q;
  assign store_o = store_q;
  assign compute_o = compute_q;
  assign load_start_o = load_start_q;
  assign store_start_o = store_start_q;
  assign gemm_start_o = gemm_start_q;
  assign norm_start_o = norm_start_q;
  assign add_start_o = add_start_q;
endmodule
`default_nettype wire
