// Self-checking bench of one engine: an outer memory behind AXI4 with read latency, a program started over AXI4-Lite; at
// the end every byte of the memory is compared with what the golden model left. Prints PASS, or FAIL and the first difference.
`timescale 1ns / 1ps
`default_nettype none
module gs_bench;
  `include "gs_instance.vh"
  localparam LATENCY = 20;
  localparam WORDS = BYTES / BUS_BYTES;
  localparam SIZE = $clog2(BUS_BYTES);

  reg clk = 0, rst = 1;
  always #5 clk = !clk;

  reg [8*BUS_BYTES-1:0] memory[0:WORDS-1];
  reg [8*BUS_BYTES-1:0] expected[0:WORDS-1];

  // control
  reg awvalid = 0, wvalid = 0, arvalid = 0;
  reg [7:0] awaddr = 0, araddr = 0;
  reg [31:0] wdata = 0;
  wire awready, wready, bvalid, arready, rvalid, interrupt;
  wire [31:0] rdata;
  wire [1:0] bresp, rresp;

  // memory port
  wire m_arvalid, m_awvalid, m_wvalid, m_wlast, m_rready, m_bready;
  wire [31:0] m_araddr, m_awaddr;
  wire [7:0] m_arlen, m_awlen;
  wire [2:0] m_arsize, m_awsize;
  wire [1:0] m_arburst, m_awburst;
  wire [8*BUS_BYTES-1:0] m_wdata;
  wire [BUS_BYTES-1:0] m_wstrb;
  reg m_rvalid = 0, m_rlast = 0, m_bvalid = 0;
  reg [8*BUS_BYTES-1:0] m_rdata = 0;
  reg reading = 0, writing = 0;

  gossamer_engine engine (
      .clk_i(clk),
      .rst_i(rst),
      .interrupt_o(interrupt),
      .s_axi_awvalid_i(awvalid),
      .s_axi_awaddr_i(awaddr),
      .s_axi_awready_o(awready),
      .s_axi_wvalid_i(wvalid),
      .s_axi_wdata_i(wdata),
      .s_axi_wstrb_i(4'hf),
      .s_axi_wready_o(wready),
      .s_axi_bvalid_o(bvalid),
      .s_axi_bresp_o(bresp),
      .s_axi_bready_i(1'b1),
      .s_axi_arvalid_i(arvalid),
      .s_axi_araddr_i(araddr),
      .s_axi_arready_o(arready),
      .s_axi_rvalid_o(rvalid),
      .s_axi_rdata_o(rdata),
      .s_axi_rresp_o(rresp),
      .s_axi_rready_i(1'b1),
      .m_axi_arvalid_o(m_arvalid),
      .m_axi_araddr_o(m_araddr),
      .m_axi_arlen_o(m_arlen),
      .m_axi_arsize_o(m_arsize),
      .m_axi_arburst_o(m_arburst),
      .m_axi_arready_i(!reading),
      .m_axi_rvalid_i(m_rvalid),
      .m_axi_rdata_i(m_rdata),
      .m_axi_rresp_i(2'd0),
      .m_axi_rlast_i(m_rlast),
      .m_axi_rready_o(m_rready),
      .m_axi_awvalid_o(m_awvalid),
      .m_axi_awaddr_o(m_awaddr),
      .m_axi_awlen_o(m_awlen),
      .m_axi_awsize_o(m_awsize),
      .m_axi_awburst_o(m_awburst),
      .m_axi_awready_i(!writing && !m_bvalid),
      .m_axi_wvalid_o(m_wvalid),
      .m_axi_wdata_o(m_wdata),
      .m_axi_wstrb_o(m_wstrb),
      .m_axi_wlast_o(m_wlast),
      .m_axi_wready_i(writing),
      .m_axi_bvalid_i(m_bvalid),
      .m_axi_bresp_i(2'd0),
      .m_axi_bready_o(m_bready)
  );

  // ---- the outer memory: one burst at a time each way
  reg [31:0] read_word = 0, write_word = 0;
  reg [8:0] read_left = 0;
  reg [7:0] wait_q = 0;
  integer i;
  always @(posedge clk) begin
    if (m_rvalid && m_rready) begin
      m_rvalid <= 0;
      m_rlast  <= 0;
      if (read_left == 0) reading <= 0;
    end
    if (m_arvalid && !reading) begin
      reading   <= 1;
      read_word <= m_araddr >> SIZE;
      read_left <= {1'b0, m_arlen} + 9'd1;
      wait_q    <= LATENCY;
    end else if (reading && wait_q != 0) wait_q <= wait_q - 8'd1;
    else if (reading && read_left != 0 && (!m_rvalid || m_rready)) begin
      m_rvalid  <= 1;
      m_rdata   <= memory[read_word];
      m_rlast   <= read_left == 1;
      read_word <= read_word + 1;
      read_left <= read_left - 9'd1;
    end
    if (m_bvalid && m_bready) m_bvalid <= 0;
    if (m_awvalid && !writing && !m_bvalid) begin
      writing    <= 1;
      write_word <= m_awaddr >> SIZE;
    end
    if (writing && m_wvalid) begin
      for (i = 0; i < BUS_BYTES; i = i + 1) if (m_wstrb[i]) memory[write_word][8*i+:8] <= m_wdata[8*i+:8];
      write_word <= write_word + 1;
      if (m_wlast) begin
        writing  <= 0;
        m_bvalid <= 1;
      end
    end
  end

  task write(input [7:0] address, input [31:0] value);
    begin
      @(negedge clk);
      awvalid = 1;
      wvalid  = 1;
      awaddr  = address;
      wdata   = value;
      @(posedge clk);
      while (!(awready && wready)) @(posedge clk);
      @(negedge clk);
      awvalid = 0;
      wvalid  = 0;
      while (!bvalid) @(negedge clk);
    end
  endtask

  task read(input [7:0] address, output [31:0] value);
    begin
      @(negedge clk);
      arvalid = 1;
      araddr  = address;
      @(posedge clk);
      while (!arready) @(posedge clk);
      @(negedge clk);
      arvalid = 0;
      while (!rvalid) @(negedge clk);
      value = rdata;
    end
  endtask

  integer word, wrong;
  reg [31:0] status, cycles;
  initial begin
    $readmemh("memory.hex", memory);
    $readmemh("expected.hex", expected);
    repeat (4) @(negedge clk);
    rst = 0;
    write(8'h08, PROGRAM_ADDRESS);
    write(8'h0c, PROGRAM_COUNT);
    write(8'h00, 32'd1);
    status = 0;
    cycles = 0;
    while (!status[1] && cycles < LIMIT) begin
      repeat (100) @(negedge clk);
      cycles = cycles + 100;
      read(8'h04, status);
    end
    read(8'h40, cycles);
    wrong = 0;
    for (word = 0; word < WORDS; word = word + 1)
      if (memory[word] !== expected[word]) begin
        if (wrong == 0) $display("first difference: word %0d is %h, not %h", word, memory[word], expected[word]);
        wrong = wrong + 1;
      end
    if (!status[1]) $display("FAIL: not done, status %h", status);
    else if (status[15:8] != 0) $display("FAIL: error, status %h", status);
    else if (wrong != 0) $display("FAIL: %0d words of the outer memory differ", wrong);
    else $display("PASS: %0d cycles", cycles);
    $finish;
  end
endmodule
`default_nettype wire
