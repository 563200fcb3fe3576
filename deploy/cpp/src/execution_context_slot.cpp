#include "execution_context_slot.hpp"

#include <algorithm>
#include <cstring>

#include "half.hpp"

namespace segdeploy {
namespace {

using nvinfer1::DataType;

std::unique_ptr<nvinfer1::IExecutionContext> made(const TensorRtEngine& engine) {
  const std::lock_guard<std::mutex> lock(engine.setting_up);
  std::unique_ptr<nvinfer1::IExecutionContext> context(engine.engine->createExecutionContext());
  if (!context) {
    throw Error(engine.path + ": the GPU has no room for an execution context (" +
                engine.library->log().reason() +
                "); build the engine for smaller inputs (--max), or use fewer contexts");
  }
  return context;
}

}  // namespace

ExecutionContextSlot::ExecutionContextSlot(const TensorRtEngine& engine)
    : engine_(engine),
      context_(made(engine)),
      stream_(engine.cuda),
      host_input_(engine.cuda, true),
      host_output_(engine.cuda, true),
      input_(engine.cuda, false),
      output_(engine.cuda, false) {
  if (engine.kernels) {
    processor_ = std::make_unique<GpuProcessor>(engine.cuda, engine.kernels, engine.contract());
  }
}

ExecutionContextSlot::~ExecutionContextSlot() {
  if (graph_ != nullptr) engine_.cuda->call.cuGraphExecDestroy(graph_);
}

void ExecutionContextSlot::run(const Input& input, Reader& reader) {
  bind(input.shape);
  const std::size_t size = input.values() * size_of(engine_.input_type);
  host_input_.grow(size);
  if (engine_.input_type == DataType::kHALF) {
    to_half(static_cast<const float*>(input.data), static_cast<std::uint16_t*>(host_input_.data()),
            input.values());
  } else {
    std::memcpy(host_input_.data(), input.data, size);
  }
  stream_.upload(host_input_, input_, size);
  execute();
  host_output_.grow(output_bytes());
  stream_.download(output_, host_output_, output_bytes());
  stream_.wait();
  OutputView view;
  view.sides = static_cast<std::size_t>(given_.nbDims);
  for (std::size_t side = 0; side < view.sides; ++side) view.shape[side] = given_.d[side];
  if (engine_.contract().gives_labels()) {
    view.labels = static_cast<const std::uint8_t*>(host_output_.data());
  } else if (engine_.output_type == DataType::kHALF) {
    floats_.resize(output_values());
    from_half(static_cast<const std::uint16_t*>(host_output_.data()), floats_.data(),
              floats_.size());
    view.scores = floats_.data();
  } else {
    view.scores = static_cast<const float*>(host_output_.data());
  }
  reader.read(view);
}

bool ExecutionContextSlot::label(const ImageView& image, std::uint8_t* labels) {
  const Contract& contract = engine_.contract();
  bind({1, contract.height, contract.width});
  processor_->prepare(image, stream_, input_.device());
  execute();
  const auto height = static_cast<int>(given_.d[given_.nbDims - 2]);
  const auto width = static_cast<int>(given_.d[given_.nbDims - 1]);
  return processor_->label(image, stream_, output_.device(), height, width, labels);
}

void ExecutionContextSlot::enqueue(void* input, void* output, CUstream stream) {
  const Contract& contract = engine_.contract();
  {
    const std::lock_guard<std::mutex> lock(engine_.setting_up);
    set_shape({1, contract.height, contract.width}, stream);
  }
  set_addresses(input, output);
  must(context_->enqueueV3(reinterpret_cast<cudaStream_t>(stream)), "run");
}

void ExecutionContextSlot::must(bool done, const char* what) const {
  if (done) return;
  throw Error(engine_.path + ": the engine cannot " + what + " on this GPU (" +
              engine_.library->log().reason() + ")");
}

void ExecutionContextSlot::set_shape(const Shape& shape, CUstream stream) {
  if (shape == shape_) return;
  shape_ = {};
  const int profile = engine_.profile_for(shape);
  if (profile != profile_) {
    must(context_->setOptimizationProfileAsync(profile, reinterpret_cast<cudaStream_t>(stream)),
         "take its profile");
    profile_ = profile;
  }
  nvinfer1::Dims wanted{4, {shape[0], 3, shape[1], shape[2]}};
  if (engine_.contract().takes_bytes) wanted = {4, {shape[0], shape[1], shape[2], 3}};
  must(context_->setInputShape(engine_.input.c_str(), wanted), "take this shape");
  given_ = context_->getTensorShape(engine_.output.c_str());
  const auto classes = static_cast<std::int64_t>(engine_.contract().classes.size());
  if (given_.nbDims != (engine_.contract().gives_labels() ? 3 : 4) || given_.d[0] != shape[0] ||
      (!engine_.contract().gives_labels() && given_.d[1] != classes) ||
      std::any_of(given_.d, given_.d + given_.nbDims, [](auto side) { return side < 1; })) {
    throw Error(engine_.path + ": its output '" + engine_.output +
                "' is not what its contract says; build it again");
  }
  shape_ = shape;
}

void ExecutionContextSlot::set_addresses(void* input, void* output) {
  must(context_->setTensorAddress(engine_.input.c_str(), input), "bind its input");
  must(context_->setTensorAddress(engine_.output.c_str(), output), "bind its output");
}

void ExecutionContextSlot::bind(const Shape& shape) {
  if (shape == shape_) return;
  const std::lock_guard<std::mutex> lock(engine_.setting_up);
  set_shape(shape, stream_.get());
  stream_.wait();
  input_.grow(Input{nullptr, shape}.values() * size_of(engine_.input_type));
  output_.grow(output_bytes());
  set_addresses(input_.data(), output_.data());
}

std::size_t ExecutionContextSlot::output_values() const {
  std::size_t values = 1;
  for (int side = 0; side < given_.nbDims; ++side) {
    values *= static_cast<std::size_t>(given_.d[side]);
  }
  return values;
}

std::size_t ExecutionContextSlot::output_bytes() const {
  return output_values() * size_of(engine_.output_type);
}

// The first run initializes the context. The second run is captured as a CUDA graph, which later
// runs replay.
void ExecutionContextSlot::execute() {
  if (graph_ != nullptr) {
    engine_.cuda->check(engine_.cuda->call.cuGraphLaunch(graph_, stream_.get()), "run the graph");
    return;
  }
  if (engine_.captures_graphs && runs_++ == 1 && capture()) return execute();
  must(context_->enqueueV3(reinterpret_cast<cudaStream_t>(stream_.get())), "run");
}

// Capture a run as a CUDA graph. Returns false if that fails: the engine then runs without a graph,
// which is only slower.
bool ExecutionContextSlot::capture() {
  const auto& call = engine_.cuda->call;
  CUgraph graph = nullptr;
  const std::lock_guard<std::mutex> lock(engine_.setting_up);
  stream_.wait();
  if (call.cuStreamBeginCapture(stream_.get(), CU_STREAM_CAPTURE_MODE_THREAD_LOCAL) !=
      CUDA_SUCCESS) {
    return false;
  }
  const bool is_queued = context_->enqueueV3(reinterpret_cast<cudaStream_t>(stream_.get()));
  const bool is_captured = call.cuStreamEndCapture(stream_.get(), &graph) == CUDA_SUCCESS;
  if (is_queued && is_captured &&
      call.cuGraphInstantiateWithFlags(&graph_, graph, 0) != CUDA_SUCCESS) {
    graph_ = nullptr;
  }
  if (graph != nullptr) call.cuGraphDestroy(graph);
  return graph_ != nullptr;
}

}  // namespace segdeploy
