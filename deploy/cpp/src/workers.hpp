// A thread pool that runs tasks in the order of their submission.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace segdeploy {

class Workers {
 public:
  // Run at most `most` threads, and keep at most `queue` waiting tasks.
  Workers(int most, int queue)
      : most_(static_cast<std::size_t>(most)), queue_(static_cast<std::size_t>(queue)) {}
  // Finish all submitted tasks, and join the threads.
  ~Workers();
  Workers(const Workers&) = delete;
  Workers& operator=(const Workers&) = delete;

  // Submit a task. Blocks while the queue is full.
  void give(std::function<void()> work);

 private:
  void serve();

  std::size_t most_;
  std::size_t queue_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::condition_variable has_room_;
  std::deque<std::function<void()>> waiting_;
  std::vector<std::thread> threads_;
  std::size_t idle_ = 0;
  bool is_ending_ = false;
};

}  // namespace segdeploy
