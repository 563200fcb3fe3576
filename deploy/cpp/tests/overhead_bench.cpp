// What the library adds to ONNX Runtime: `predict` against a bare session with the same graph and
// input, in turns, each in a process of its own: idle threads of the one would disturb the other.
//     overhead_bench MODEL.onnx THREADS [ROUNDS]
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>

#include "inference.hpp"

namespace {

using Clock = std::chrono::steady_clock;

template <typename Call>
double milliseconds(Call call) {
  const auto begin = Clock::now();
  call();
  return std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

constexpr int kCalls = 4;  // of a turn, after one that does not count

// Serves turns: reads a byte, and writes the median of the turn's calls.
template <typename Call>
void serve(int asked, int told, Call call) {
  for (char byte; read(asked, &byte, 1) == 1;) {
    call();
    std::vector<double> times;
    for (int at = 0; at < kCalls; ++at) times.push_back(milliseconds(call));
    const double found = median(times);
    if (write(told, &found, sizeof found) != sizeof found) break;
  }
}

void serve_library(const segdeploy::Inference& inference, int asked, int told);
void serve_bare(const segdeploy::Inference& inference, const char* path, int threads, int asked,
                int told);

class Child {
 public:
  Child(const char* path, int threads, bool is_bare) {
    int to[2], from[2];
    if (pipe(to) != 0 || pipe(from) != 0) std::exit(2);
    if (fork() == 0) {
      close(to[1]);
      close(from[0]);
      segdeploy::Options options;
      options.threads = threads;
      const segdeploy::Inference inference(path, options);
      if (is_bare) {
        serve_bare(inference, path, threads, to[0], from[1]);
      } else {
        serve_library(inference, to[0], from[1]);
      }
      std::_Exit(0);
    }
    close(to[0]);
    close(from[1]);
    asked_ = to[1];
    told_ = from[0];
  }
  ~Child() {
    close(asked_);
    wait(nullptr);
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  double turn() const {
    double found = 0;
    if (write(asked_, "t", 1) != 1 || read(told_, &found, sizeof found) != sizeof found)
      std::exit(2);
    return found;
  }

 private:
  int asked_ = 0;
  int told_ = 0;
};

std::vector<std::uint8_t> noise(const segdeploy::Contract& contract) {
  std::vector<std::uint8_t> picture(static_cast<std::size_t>(contract.height * contract.width * 3));
  std::mt19937 random(0);
  for (auto& byte : picture) byte = static_cast<std::uint8_t>(random());
  return picture;
}

void serve_library(const segdeploy::Inference& inference, int asked, int told) {
  const auto picture = noise(inference.contract());
  const segdeploy::ImageView view{picture.data(), inference.contract().height,
                                  inference.contract().width};
  std::vector<std::uint8_t> labels(picture.size() / 3);
  serve(asked, told, [&] { inference.predict(view, labels.data()); });
}

// The library has opened the runtime; its own session sleeps.
void serve_bare(const segdeploy::Inference& inference, const char* path, int threads, int asked,
                int told) {
  const auto& contract = inference.contract();
  const auto picture = noise(contract);
  segdeploy::Prepared prepared;
  segdeploy::Preprocessor(contract).run({picture.data(), contract.height, contract.width},
                                        prepared);
  Ort::Env environment(ORT_LOGGING_LEVEL_ERROR);
  Ort::SessionOptions settings;
  settings.SetIntraOpNumThreads(threads);
  Ort::Session session(environment, path, settings);
  Ort::AllocatorWithDefaultOptions allocator;
  const auto input = session.GetInputNameAllocated(0, allocator);
  const auto output = session.GetOutputNameAllocated(0, allocator);
  const char* inputs[] = {input.get()};
  const char* outputs[] = {output.get()};
  const std::int64_t shape[] = {1, 3, contract.height, contract.width};
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  serve(asked, told, [&] {
    const auto tensor = Ort::Value::CreateTensor<float>(memory, prepared.floats.data(),
                                                        prepared.floats.size(), shape, 4);
    session.Run(Ort::RunOptions{nullptr}, inputs, &tensor, 1, outputs, 1);
  });
}

}  // namespace

int main(int count, char** words) {
  if (count < 3) return 2;
  const int threads = std::atoi(words[2]);
  const int rounds = count > 3 ? std::atoi(words[3]) : 50;
  const Child bare(words[1], threads, true), whole(words[1], threads, false);
  std::vector<double> alone, with, ratios;
  for (int round = 0; round < rounds; ++round) {
    alone.push_back(bare.turn());
    with.push_back(whole.turn());
    ratios.push_back(with.back() / alone.back());
  }
  std::printf("bare %.3f ms, predict %.3f ms: %+.2f %% (median of %d turns)\n", median(alone),
              median(with), 100 * (median(ratios) - 1), rounds);
  return 0;
}
