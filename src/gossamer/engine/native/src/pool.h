// Threads that stay, and a barrier between the steps of a program. Nothing is inline: code that is compiled for one
// processor must not become that of all.
#pragma once
#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace gossamer {

class Pool {
 public:
  explicit Pool(int size);
  ~Pool();
  int size() const;

  // Runs job(thread) on every thread, this one being 0, and waits for all.
  void run(const std::function<void(int)>& job);

  // To be called by every thread of a job alike.
  void barrier();

 private:
  void work(int thread);

  int size_;
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<unsigned> generation_{0};
  std::atomic<unsigned> phase_{0};
  std::atomic<int> arrived_{0};
  const std::function<void(int)>* job_ = nullptr;
  bool stopping_ = false;
};

}  // namespace gossamer
