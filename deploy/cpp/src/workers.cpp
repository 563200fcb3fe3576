#include "workers.hpp"

#include <utility>

namespace segdeploy {

Workers::~Workers() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    is_ending_ = true;
  }
  changed_.notify_all();
  for (auto& thread : threads_) thread.join();
}

void Workers::give(std::function<void()> work) {
  std::unique_lock<std::mutex> lock(mutex_);
  has_room_.wait(lock, [this] { return waiting_.size() < queue_; });
  // Start the thread before queueing: if that fails, no work is left in the queue.
  if (idle_ <= waiting_.size() && threads_.size() < most_) {
    threads_.emplace_back([this] { serve(); });
  }
  waiting_.push_back(std::move(work));
  changed_.notify_one();
}

void Workers::serve() {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    ++idle_;
    changed_.wait(lock, [this] { return is_ending_ || !waiting_.empty(); });
    --idle_;
    if (waiting_.empty()) return;
    {
      const auto work = std::move(waiting_.front());
      waiting_.pop_front();
      has_room_.notify_one();
      lock.unlock();
      work();
    }  // the task is freed before the next task is taken
    lock.lock();
  }
}

}  // namespace segdeploy
