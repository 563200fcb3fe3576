// The backend for TensorRT and TensorRT-RTX engines.
#include <exception>
#include <mutex>

#include "backend.hpp"
#include "execution_context_slot.hpp"
#include "pool.hpp"
#include "tensorrt_engine.hpp"

namespace segdeploy {
namespace {

class TensorRt final : public Backend {
 public:
  TensorRt(const std::string& path, const Options& options)
      : engine_(path, options),
        slots_(std::make_unique<Pool<ExecutionContextSlot>>(
            [this] { return std::make_unique<ExecutionContextSlot>(engine_); },
            static_cast<std::size_t>(options.contexts))) {}

  // GPU resources are freed while their context is current. A destroyed context has already freed
  // them.
  ~TensorRt() override {
    try {
      const CudaScope scope(*engine_.cuda);
      wait_for_last();
      if (last_ != nullptr) engine_.cuda->call.cuEventDestroy(last_);
      shared_.reset();
      slots_.reset();
      engine_.kernels.reset();
      engine_.engine.reset();
    } catch (const Error&) {  // the context no longer exists
    }
  }

  const Contract& contract() const override { return engine_.contract(); }

  std::string name() const override {
    return engine_.manifest.backend + " " + engine_.library->version() + " on " +
           engine_.cuda->gpu().name;
  }

  bool takes_any_size() const override { return !contract().profiles.empty(); }
  bool takes_batches() const override { return takes_any_size(); }

  // An exception of the reader is rethrown after the slot was given back. The pool would discard
  // the slot of a failed call, but this slot is intact.
  void run(const Input& input, Reader& reader) const override {
    engine_.profile_for(input.shape);  // refuse an unsupported shape before taking a slot
    std::exception_ptr failure;
    CallingReader guarded([&](const OutputView& output) {
      try {
        reader.read(output);
      } catch (...) {
        failure = std::current_exception();
      }
    });
    {
      const CudaScope scope(*engine_.cuda);
      const Pool<ExecutionContextSlot>::Lease slot(*slots_);
      slot->run(input, guarded);
    }
    if (failure) std::rethrow_exception(failure);
  }

  bool label(const ImageView& image, std::uint8_t* labels) const override {
    if (!engine_.kernels) return false;
    bool is_finite = false;
    {
      const CudaScope scope(*engine_.cuda);
      const Pool<ExecutionContextSlot>::Lease slot(*slots_);
      is_finite = slot->label(image, labels);
    }
    if (!is_finite) refuse_not_finite(engine_.path);
    if (contract().gives_labels()) {
      check_labels(engine_.path, contract(), labels, area(image.height, image.width));
    }
    return true;
  }

  // One execution context serves all callers. A caller's stream waits for the run that was queued
  // last.
  void enqueue(const void* input, void* output, void* stream) const override {
    const CudaScope scope(*engine_.cuda);
    const std::lock_guard<std::mutex> lock(queueing_);
    const auto& cuda = *engine_.cuda;
    const auto theirs = static_cast<CUstream>(stream);
    if (!shared_) shared_ = std::make_unique<ExecutionContextSlot>(engine_);
    if (last_ == nullptr) {
      cuda.check(cuda.call.cuEventCreate(&last_, CU_EVENT_DISABLE_TIMING), "make an event");
    } else {
      cuda.check(cuda.call.cuStreamWaitEvent(theirs, last_, 0), "wait for the last call");
    }
    try {
      shared_->enqueue(const_cast<void*>(input), output, theirs);
    } catch (...) {
      wait_for_last();
      shared_.reset();  // it may be half set up
      throw;
    }
    cuda.check(cuda.call.cuEventRecord(last_, theirs), "mark the end of a call");
  }

 private:
  // An execution context must not be destroyed while a run that it queued is in progress.
  void wait_for_last() const {
    if (last_ != nullptr) engine_.cuda->call.cuEventSynchronize(last_);
  }

  TensorRtEngine engine_;
  std::unique_ptr<Pool<ExecutionContextSlot>> slots_;
  mutable std::mutex queueing_;
  mutable std::unique_ptr<ExecutionContextSlot> shared_;
  mutable CUevent last_ = nullptr;
};

}  // namespace

std::unique_ptr<Backend> open_tensorrt(const std::string& path, const Options& options) {
  return std::make_unique<TensorRt>(path, options);
}

}  // namespace segdeploy
