// gs_top as a library that Python drives through ctypes (simulate.py): the clock, the outer memory behind AXI4, register
// access by AXI4-Lite, random stalls, and a check of the bus rules. Every signal is seen just before the rising edge.
#include <cstdint>
#include <cstring>
#include <deque>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "Vtop.h"
#include "verilated.h"

void vl_fatal(const char* file, int line, const char*, const char* message) {
  throw std::runtime_error(std::string(file) + ":" + std::to_string(line) + ": " + message);
}

namespace {

constexpr size_t kBus = sizeof(Vtop::m_axi_rdata_i);
constexpr int kSize = __builtin_ctz(kBus);

[[noreturn]] void fail(const std::string& what) { throw std::runtime_error(what); }

// Steady valid: once it is up it stays, with the same payload, until it is taken.
class Held {
 public:
  explicit Held(const char* channel) : channel_(channel) {}
  void check(bool valid, bool ready, const std::string& payload) {
    if (waits_ && !valid) fail(std::string(channel_) + ": valid fell before ready");
    if (waits_ && payload != payload_) fail(std::string(channel_) + ": the payload changed before ready");
    waits_ = valid && !ready;
    if (waits_) payload_ = payload;
  }
  bool waits() const { return waits_; }

 private:
  const char* channel_;
  bool waits_ = false;
  std::string payload_;
};

struct Burst {
  uint64_t address;
  int left;
  uint64_t due;
};

struct Beat {
  uint8_t data[kBus];
  uint8_t bytes[(kBus + 7) / 8];
  bool last;
};

template <typename... Values> std::string packed(const Values&... values) {
  std::string all;
  (all.append(reinterpret_cast<const char*>(&values), sizeof values), ...);
  return all;
}

class Engine {
 public:
  Engine(int read_latency, int write_latency, double stalls, uint64_t seed)
      : read_latency_(read_latency), write_latency_(write_latency), state_(seed * 2 + 1) {
    threshold_ = static_cast<uint64_t>(stalls * 4294967296.0);
    if (seed) {
      context_.randReset(2);
      context_.randSeed(static_cast<int>(seed & 0x7fffffff) | 1);
    }
    top_ = std::make_unique<Vtop>(&context_, "");
    top_->clk_i = 0;
    top_->m_axi_rresp_i = top_->m_axi_bresp_i = 0;  // the seed reaches inputs too
    top_->rst_i = 1;
    for (int i = 0; i < 4; ++i) tick();
    top_->rst_i = 0;
  }
  ~Engine() { top_->final(); }

  void memory(uint8_t* bytes, uint64_t size) {
    memory_ = bytes;
    size_ = size;
  }

  void write(uint32_t address, uint32_t data) {
    bool address_sent = false, data_sent = false, answered = false;
    for (int patience = 0; !answered; ++patience) {
      if (patience > 100000) fail("AXI4-Lite: a write is not answered");
      top_->s_axi_awvalid_i = !address_sent && (lite_aw_.waits() || !stall());
      top_->s_axi_awaddr_i = address;
      top_->s_axi_wvalid_i = !data_sent && (lite_w_.waits() || !stall());
      top_->s_axi_wdata_i = data;
      top_->s_axi_wstrb_i = 15;
      top_->s_axi_bready_i = !stall();
      tick([&] {
        lite_aw_.check(top_->s_axi_awvalid_i, top_->s_axi_awready_o, "");
        lite_w_.check(top_->s_axi_wvalid_i, top_->s_axi_wready_o, "");
        address_sent |= top_->s_axi_awvalid_i && top_->s_axi_awready_o;
        data_sent |= top_->s_axi_wvalid_i && top_->s_axi_wready_o;
        if (top_->s_axi_bvalid_o && !(address_sent && data_sent)) fail("AXI4-Lite: an answer before the write");
        answered = top_->s_axi_bvalid_o && top_->s_axi_bready_i;
        if (answered && top_->s_axi_bresp_o) fail("register " + std::to_string(address) + " refuses to be written");
      });
    }
    top_->s_axi_awvalid_i = top_->s_axi_wvalid_i = top_->s_axi_bready_i = 0;
  }

  uint32_t read(uint32_t address) {
    uint32_t data = 0;
    bool sent = false, answered = false;
    for (int patience = 0; !answered; ++patience) {
      if (patience > 100000) fail("AXI4-Lite: a read is not answered");
      top_->s_axi_arvalid_i = !sent && (lite_ar_.waits() || !stall());
      top_->s_axi_araddr_i = address;
      top_->s_axi_rready_i = !stall();
      tick([&] {
        lite_ar_.check(top_->s_axi_arvalid_i, top_->s_axi_arready_o, "");
        answered = top_->s_axi_rvalid_o && top_->s_axi_rready_i;
        sent |= top_->s_axi_arvalid_i && top_->s_axi_arready_o;
        if (answered) data = top_->s_axi_rdata_o;
      });
    }
    top_->s_axi_arvalid_i = top_->s_axi_rready_i = 0;
    return data;
  }

  // Clocks until the interrupt, for at most so many cycles. Returns whether it came.
  bool wait(uint64_t limit) {
    for (uint64_t end = now_ + limit; now_ < end;) {
      tick();
      if (top_->interrupt_o) {
        if (!reads_.empty() || !writes_.empty() || !beats_.empty() || !answers_.empty())
          fail("the program has ended before its transfers");
        return true;
      }
    }
    return false;
  }

  uint64_t now() const { return now_; }

  std::string error;
  bool recording = false;
  std::vector<int64_t> recorded;  // four numbers a burst: cycle, address, words, whether it is a write

 private:
  bool stall() {
    if (!threshold_) return false;
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return (state_ >> 32) < threshold_;
  }

  template <typename Look> void tick(Look look) {
    Vtop& top = *top_;
    // the memory's side, chosen before what the engine shows in this cycle is known
    top.m_axi_arready_i = !stall();
    top.m_axi_awready_i = !stall();
    top.m_axi_wready_i = !stall();
    const bool data = !reads_.empty() && reads_.front().due <= now_ && (r_waits_ || !stall());
    top.m_axi_rvalid_i = data;
    if (data) {
      std::memcpy(&top.m_axi_rdata_i, memory_ + reads_.front().address, kBus);
      top.m_axi_rlast_i = reads_.front().left == 1;
    }
    top.m_axi_bvalid_i = !answers_.empty() && answers_.front() <= now_ && (b_waits_ || !stall());
    top.eval();
    if (!top.rst_i) {
      look();
      bus();
    }
    top.clk_i = 1;
    top.eval();
    top.clk_i = 0;
    ++now_;
  }
  void tick() {
    tick([] {});
  }

  void bus() {
    Vtop& top = *top_;
    ar_.check(top.m_axi_arvalid_o, top.m_axi_arready_i,
              top.m_axi_arvalid_o ? packed(top.m_axi_araddr_o, top.m_axi_arlen_o) : std::string());
    aw_.check(top.m_axi_awvalid_o, top.m_axi_awready_i,
              top.m_axi_awvalid_o ? packed(top.m_axi_awaddr_o, top.m_axi_awlen_o) : std::string());
    w_.check(top.m_axi_wvalid_o, top.m_axi_wready_i,
             top.m_axi_wvalid_o && (w_.waits() || !top.m_axi_wready_i)
                 ? packed(top.m_axi_wdata_o, top.m_axi_wstrb_o, top.m_axi_wlast_o)
                 : std::string());
    r_waits_ = top.m_axi_rvalid_i && !top.m_axi_rready_o;
    b_waits_ = top.m_axi_bvalid_i && !top.m_axi_bready_o;

    if (top.m_axi_rvalid_i && top.m_axi_rready_o) {
      Burst& burst = reads_.front();
      burst.address += kBus;
      if (!--burst.left) reads_.pop_front();
    }
    if (top.m_axi_bvalid_i && top.m_axi_bready_o) answers_.pop_front();
    if (top.m_axi_arvalid_o && top.m_axi_arready_i) {
      legal("AR", top.m_axi_araddr_o, top.m_axi_arlen_o, top.m_axi_arsize_o, top.m_axi_arburst_o);
      record(top.m_axi_araddr_o, top.m_axi_arlen_o, 0);
      reads_.push_back({top.m_axi_araddr_o, top.m_axi_arlen_o + 1, now_ + read_latency_});
    }
    if (top.m_axi_awvalid_o && top.m_axi_awready_i) {
      legal("AW", top.m_axi_awaddr_o, top.m_axi_awlen_o, top.m_axi_awsize_o, top.m_axi_awburst_o);
      record(top.m_axi_awaddr_o, top.m_axi_awlen_o, 1);
      writes_.push_back({top.m_axi_awaddr_o, top.m_axi_awlen_o + 1, 0});
    }
    if (top.m_axi_wvalid_o && top.m_axi_wready_i) {
      Beat& beat = beats_.emplace_back();
      std::memcpy(beat.data, &top.m_axi_wdata_o, kBus);
      std::memcpy(beat.bytes, &top.m_axi_wstrb_o, sizeof beat.bytes);
      beat.last = top.m_axi_wlast_o;
    }
    while (!writes_.empty() && !beats_.empty()) put(writes_.front(), beats_.front());
  }

  void put(Burst& burst, const Beat& beat) {
    for (size_t i = 0; i < kBus; ++i)
      if (beat.bytes[i / 8] >> i % 8 & 1) memory_[burst.address + i] = beat.data[i];
    burst.address += kBus;
    --burst.left;
    if (beat.last != (burst.left == 0)) fail("W: last does not come with the burst's last word");
    beats_.pop_front();
    if (burst.left) return;
    writes_.pop_front();
    answers_.push_back(now_ + write_latency_);
  }

  void record(uint64_t address, int length, int write) {
    if (!recording) return;
    recorded.insert(recorded.end(), {static_cast<int64_t>(now_), static_cast<int64_t>(address), length + 1, write});
  }

  void legal(const char* channel, uint64_t address, int length, int size, int burst) {
    const uint64_t end = address + (length + 1) * kBus;
    const std::string where = std::string(channel) + ": a burst of " + std::to_string(length + 1) + " words at " +
                              std::to_string(address) + " ";
    if (address % kBus) fail(where + "is not aligned to the bus");
    if (size != kSize || burst != 1) fail(where + "is not INCR of whole words");
    if (address / 4096 != (end - 1) / 4096) fail(where + "crosses 4 KB");
    if (end > size_) fail(where + "passes the end of the outer memory, " + std::to_string(size_));
  }

  const uint64_t read_latency_, write_latency_;
  uint64_t state_, threshold_, now_ = 0;
  VerilatedContext context_;
  std::unique_ptr<Vtop> top_;
  uint8_t* memory_ = nullptr;
  uint64_t size_ = 0;
  std::deque<Burst> reads_, writes_;
  std::deque<Beat> beats_;
  std::deque<uint64_t> answers_;
  bool r_waits_ = false, b_waits_ = false;
  Held ar_{"AR"}, aw_{"AW"}, w_{"W"}, lite_aw_{"AXI4-Lite AW"}, lite_w_{"AXI4-Lite W"}, lite_ar_{"AXI4-Lite AR"};
};

template <typename Work> int guarded(Engine* engine, Work work) {
  try {
    if (engine->error.empty()) work();
  } catch (const std::exception& error) {
    engine->error = error.what();
  }
  return !engine->error.empty();
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// Data of a read come `read_latency` cycles after its address, an answer to a write `write_latency` cycles after its last
// word (both ≥ 1). Each side of a handshake waits with probability `stalls`. Registers start at random bits if seed > 0.
Engine* gossamer_new(int read_latency, int write_latency, double stalls, uint64_t seed) {
  return new Engine(read_latency, write_latency, stalls, seed);
}

void gossamer_free(Engine* engine) { delete engine; }

// Empty if nothing went wrong. All functions below return other than 0 once something has.
const char* gossamer_error(Engine* engine) { return engine->error.c_str(); }

void gossamer_memory(Engine* engine, uint8_t* bytes, uint64_t size) { engine->memory(bytes, size); }

int gossamer_write(Engine* engine, uint32_t address, uint32_t data) {
  return guarded(engine, [=] { engine->write(address, data); });
}

int gossamer_read(Engine* engine, uint32_t address, uint32_t* data) {
  return guarded(engine, [=] { *data = engine->read(address); });
}

int gossamer_wait(Engine* engine, uint64_t limit, int* ended) {
  return guarded(engine, [=] { *ended = engine->wait(limit); });
}

uint64_t gossamer_now(Engine* engine) { return engine->now(); }

// From now on bursts are recorded, or no more; what was is forgotten.
void gossamer_record(Engine* engine, int on) {
  engine->recording = on;
  engine->recorded.clear();
}

// Numbers recorded, four a burst; `recorded` gives the first of them.
uint64_t gossamer_recorded(Engine* engine, const int64_t** recorded) {
  *recorded = engine->recorded.data();
  return engine->recorded.size();
}

}  // extern "C"
#pragma GCC visibility pop
