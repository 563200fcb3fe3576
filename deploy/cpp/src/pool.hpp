// A pool of objects that calls need, such as buffers: one per concurrent call, up to a limit.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace segdeploy {

// Idle objects are kept, so that calls allocate nothing. A call waits while all `most` objects are
// in use. The object of a failed call is discarded, because it may be half set up.
template <typename Thing>
class Pool {
 public:
  using Make = std::function<std::unique_ptr<Thing>()>;

  explicit Pool(Make make, std::size_t most = static_cast<std::size_t>(-1))
      : make_(std::move(make)), most_(most) {}

  // Holds one object for the duration of a call.
  class Lease {
   public:
    explicit Lease(Pool& owner) : owner_(owner), held_(owner.take()) {}
    ~Lease() {
      if (std::uncaught_exceptions() > failures_) held_.reset();
      owner_.give(std::move(held_));
    }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    Thing& operator*() const { return *held_; }
    Thing* operator->() const { return held_.get(); }

   private:
    Pool& owner_;
    std::unique_ptr<Thing> held_;
    int failures_ = std::uncaught_exceptions();
  };

 private:
  std::unique_ptr<Thing> take() {
    std::unique_lock<std::mutex> lock(mutex_);
    returned_.wait(lock, [&] { return !idle_.empty() || made_ < most_; });
    if (idle_.empty()) {
      idle_.reserve(made_ + 1);  // `give` must not fail
      ++made_;
      lock.unlock();
      try {
        return make_();
      } catch (...) {
        lock.lock();
        --made_;
        returned_.notify_one();
        throw;
      }
    }
    auto taken = std::move(idle_.back());
    idle_.pop_back();
    return taken;
  }

  void give(std::unique_ptr<Thing> thing) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (thing) {
      idle_.push_back(std::move(thing));
    } else {
      --made_;
    }
    returned_.notify_one();
  }

  Make make_;
  std::size_t most_;
  std::mutex mutex_;
  std::condition_variable returned_;
  std::vector<std::unique_ptr<Thing>> idle_;
  std::size_t made_ = 0;
};

}  // namespace segdeploy
