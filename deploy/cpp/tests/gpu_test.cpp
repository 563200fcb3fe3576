// Tests that need a GPU, for each engine NAME.engine in SEGDEPLOY_TEST_FILES: kernels against the
// CPU code, runs on device memory, and several threads. Prints the comparisons.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <random>
#include <thread>

#include "check.hpp"
#include "cuda_driver.hpp"
#include "gpu_processing.hpp"
#include "inference.hpp"
#include "labels.hpp"

namespace {

namespace fs = std::filesystem;
using namespace segdeploy;

std::vector<std::uint8_t> noise(int height, int width, int channels) {
  std::mt19937 random(static_cast<unsigned>(height * 10007 + width));
  std::vector<std::uint8_t> bytes(static_cast<std::size_t>(height * width * channels));
  for (auto& byte : bytes) byte = static_cast<std::uint8_t>(random());
  return bytes;
}

template <typename Value>
std::vector<Value> downloaded(const CudaPointer& cuda, const CudaStream& stream,
                              const CudaMemory& from, std::size_t count) {
  CudaMemory pinned(cuda, true);
  pinned.grow(count * sizeof(Value));
  stream.download(from, pinned, count * sizeof(Value));
  stream.wait();
  std::vector<Value> values(count);
  std::memcpy(values.data(), pinned.data(), count * sizeof(Value));
  return values;
}

Contract some_contract(int classes) {
  Contract contract;
  contract.classes.resize(static_cast<std::size_t>(classes));
  contract.height = 48;
  contract.width = 64;
  contract.mean = {0.485F, 0.456F, 0.406F};
  contract.std = {0.229F, 0.224F, 0.225F};
  return contract;
}

// Compare the kernels' network input and labels with those of the CPU code, bit for bit. Returns
// the number of label comparisons.
int check_kernels(const CudaPointer& cuda, const KernelsPointer& kernels) {
  const CudaStream stream(cuda);
  int compared = 0;
  std::mt19937 random(0);
  for (int round = 0; round < 60; ++round) {
    auto contract = some_contract(round % 3 == 0 ? 256 : 11);
    contract.is_bgr = round % 2 == 1;
    contract.takes_bytes = round % 4 == 3;
    const int height = 8 + static_cast<int>(random() % 150);
    const int width = 8 + static_cast<int>(random() % 150);
    const int shapes[][2] = {{height, width}, {48, width}, {height, 64}, {48, 64}, {1, 1}};
    const auto& shape = shapes[round % 5];
    const Format formats[] = {Format::rgb, Format::bgr, Format::rgba, Format::gray};
    const auto bytes = noise(shape[0], shape[1], 4);
    const ImageView view{bytes.data(), shape[0], shape[1], static_cast<std::size_t>(shape[1]) * 4,
                         formats[round % 4]};
    GpuProcessor images(cuda, kernels, contract);
    const Preprocessor preprocessor(contract);
    Prepared prepared;
    preprocessor.run(view, prepared);
    CudaMemory input(cuda, false);
    const std::size_t values = 48 * 64 * 3;
    input.grow(values * sizeof(float));
    images.prepare(view, stream, input.device());
    if (contract.takes_bytes) {
      CHECK(downloaded<std::uint8_t>(cuda, stream, input, values) == prepared.bytes);
    } else {
      CHECK(downloaded<float>(cuda, stream, input, values) == prepared.floats);
    }
    // Scores for each kind of upsampling, some with ties.
    for (const auto upsampling :
         {Upsampling::none, Upsampling::align_corners, Upsampling::half_pixel}) {
      contract.output = upsampling == Upsampling::none ? Output::logits : Output::labels;
      contract.upsampling = upsampling;
      const int high = upsampling == Upsampling::none ? 48 : 7;
      const int wide = upsampling == Upsampling::none ? 64 : 9;
      std::uniform_real_distribution<float> spread(-3, 3);
      std::vector<float> scores(contract.classes.size() * static_cast<std::size_t>(high * wide));
      for (auto& score : scores) {
        score = spread(random);
        if (round % 2 == 0) score = std::round(score);
      }
      CudaMemory pinned(cuda, true), output(cuda, false);
      pinned.grow(scores.size() * sizeof(float));
      output.grow(scores.size() * sizeof(float));
      std::memcpy(pinned.data(), scores.data(), scores.size() * sizeof(float));
      stream.upload(pinned, output, scores.size() * sizeof(float));
      std::vector<std::uint8_t> ours(static_cast<std::size_t>(shape[0] * shape[1])), theirs(ours);
      GpuProcessor labeling(cuda, kernels, contract);
      CHECK(labeling.label(view, stream, output.device(), high, wide, ours.data()));
      Labeller labeller;
      const Scores cpu{scores.data(), static_cast<int>(contract.classes.size()), high, wide};
      if (upsampling == Upsampling::none) {
        labeller.best_classes(cpu, shape[0], shape[1], theirs.data());
      } else {
        std::vector<std::uint8_t> own(48 * 64);
        labeller.best_classes_of_low_resolution(
            cpu, 48, 64, upsampling == Upsampling::align_corners, own.data());
        resize_nearest(own.data(), 48, 64, shape[0], shape[1], theirs.data());
      }
      CHECK(ours == theirs);
      ++compared;
      scores[scores.size() / 2] = NAN;
      std::memcpy(pinned.data(), scores.data(), scores.size() * sizeof(float));
      stream.upload(pinned, output, scores.size() * sizeof(float));
      CHECK(!labeling.label(view, stream, output.device(), high, wide, ours.data()));
    }
  }
  return compared;
}

// Keeps a copy of the raw output.
class Keeping final : public Reader {
 public:
  void read(const OutputView& output) override {
    const std::size_t size = output.values() * (output.scores != nullptr ? sizeof(float) : 1);
    const void* from = output.labels;
    if (output.scores != nullptr) from = output.scores;
    bytes.resize(size);
    std::memcpy(bytes.data(), from, size);
  }

  std::vector<std::uint8_t> bytes;
};

// Compare an engine's raw output in the caller's device memory with that of the normal path.
void check_device_memory(const CudaPointer& cuda, const std::string& path) {
  const Inference inference(path, {});
  const Contract& contract = inference.contract();
  const auto image = noise(contract.height, contract.width, 3);
  Workspace work;
  Keeping wanted;
  inference.run({image.data(), contract.height, contract.width}, work, wanted);
  const auto& prepared = work.prepared;
  const void* from = prepared.floats.data();
  std::size_t size = prepared.floats.size() * sizeof(float);
  if (contract.takes_bytes) {
    from = prepared.bytes.data();
    size = prepared.bytes.size();
  }
  const CudaStream streams[] = {CudaStream(cuda), CudaStream(cuda)};
  CudaMemory pinned(cuda, true), input(cuda, false), output(cuda, false);
  pinned.grow(size);
  input.grow(size);
  output.grow(wanted.bytes.size());
  std::memcpy(pinned.data(), from, size);
  for (int round = 0; round < 6; ++round) {
    const CudaStream& stream = streams[round % 2];
    stream.upload(pinned, input, size);
    inference.backend().enqueue(input.data(), output.data(), stream.get());
    const auto found = downloaded<std::uint8_t>(cuda, stream, output, wanted.bytes.size());
    // TensorRT-RTX replaces the kernels of a dynamic engine at run time, which changes rounding.
    CHECK(found == wanted.bytes || inference.backend().takes_any_size());
  }
}

std::size_t differing(const std::vector<std::uint8_t>& a, const std::vector<std::uint8_t>& b) {
  CHECK(a.size() == b.size());
  std::size_t count = 0;
  for (std::size_t at = 0; at < a.size(); ++at) count += a[at] != b[at];
  return count;
}

// Print how far the outputs of one engine, loaded twice, differ: TensorRT may choose other kernels
// each time.
void tell_contexts(const std::string& path) {
  Keeping outputs[2];
  const std::vector<std::uint8_t>* bytes[2];
  for (int at = 0; at < 2; ++at) {
    const Inference inference(path, {});
    const Contract& contract = inference.contract();
    const auto image = noise(contract.height, contract.width, 3);
    Workspace work;
    inference.run({image.data(), contract.height, contract.width}, work, outputs[at]);
    bytes[at] = &outputs[at].bytes;
  }
  std::cout << "two openings differ in " << differing(*bytes[0], *bytes[1]) << " of "
            << bytes[0]->size() << " bytes; ";
}

// All execution paths of an engine give the same labels, also from several threads.
void check_ways(const std::string& path) {
  Options plain;
  plain.cuda_graph = plain.gpu_preprocessing = false;
  const Model slow(path, plain), fast(path);
  const auto image = noise(90, 117, 3);
  const ImageView view{image.data(), 90, 117};
  const auto wanted = slow.predict(view).data;
  for (int run = 0; run < 5; ++run) {  // first run, graph capture, graph replays
    CHECK(slow.predict(view).data == wanted);
    CHECK(fast.predict(view).data == wanted);
  }
  std::vector<std::thread> threads;
  std::vector<std::size_t> most(8, 0);  // more threads than there are contexts
  for (std::size_t& one : most) {
    threads.emplace_back([&] {
      for (int run = 0; run < 20; ++run) {
        one = std::max(one, differing(fast.predict(view).data, wanted));
      }
    });
  }
  for (auto& thread : threads) thread.join();
  const auto worst = *std::max_element(most.begin(), most.end());
  std::cout << "8 threads differ in " << worst << " of " << wanted.size() << " labels; ";
  CHECK(worst * 100 <= wanted.size());
  auto pending = fast.submit(view);
  CHECK(pending.get().data == wanted);
  for (const auto& labels : fast.predict(std::vector<ImageView>{view, view, view})) {
    CHECK(differing(labels.data, wanted) * 100 <= wanted.size());  // a batch may use other kernels
  }
}

}  // namespace

int main() {
  const CudaPointer cuda = Cuda::open();
  CHECK(cuda != nullptr);
  std::cout << cuda->gpu().name << " " << cuda->gpu().compute_capability << "\n";
  {
    const CudaScope scope(*cuda);
    const auto kernels = Kernels::load(cuda);
    CHECK(kernels != nullptr);
    std::cout << check_kernels(cuda, kernels) << " times the CPU's labels\n";
  }
  int engines = 0;
  for (const auto& entry : fs::directory_iterator(test_files())) {
    if (entry.path().extension() != ".engine") continue;
    const std::string path = entry.path().string();
    tell_contexts(path);
    check_ways(path);
    const CudaScope scope(*cuda);
    check_device_memory(cuda, path);
    std::cout << entry.path().filename() << " holds\n";
    ++engines;
  }
  CHECK(engines > 0);
  return 0;
}
