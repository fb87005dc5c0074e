#include "pool.h"

#include <chrono>

namespace gossamer {

namespace {

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

Pool::Pool(int size) : size_(size) {
  for (int i = 1; i < size; i++) threads_.emplace_back([this, i] { work(i); });
}

Pool::~Pool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    generation_++;
  }
  wake_.notify_all();
  for (auto& thread : threads_) thread.join();
}

int Pool::size() const { return size_; }

void Pool::run(const std::function<void(int)>& job) {
  job_ = &job;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    generation_++;
  }
  if (size_ > 1) wake_.notify_all();
  job(0);
  barrier();
}

void Pool::barrier() {
  if (size_ == 1) return;
  const unsigned phase = phase_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
    return;
  }
  for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; spins++) {
    if (spins < 4096) relax();
    else std::this_thread::yield();  // another process has our cores: spinning would only keep it there
  }
}

void Pool::work(int thread) {
  unsigned seen = 0;
  while (true) {
    // The next token comes within milliseconds, and waking a sleeper takes longer than a layer: so look a while first.
    const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(5);
    while (generation_.load(std::memory_order_acquire) == seen && std::chrono::steady_clock::now() < until) {
      for (int spins = 0; spins < 64 && generation_.load(std::memory_order_acquire) == seen; spins++) relax();
      std::this_thread::yield();  // who prepares that token, or sends the last one, may need this core
    }
    if (generation_.load(std::memory_order_acquire) == seen) {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return generation_.load() != seen; });
    }
    seen = generation_.load(std::memory_order_acquire);
    if (stopping_) return;
    (*job_)(thread);
    barrier();
  }
}

}  // namespace gossamer
