// Measure the overhead of the library over ONNX Runtime: `predict` against a bare session with the
// same graph and input, in turns. Each runs in its own process, because idle threads would disturb
// the other.
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

constexpr int kCalls = 4;  // timed calls per turn, after an untimed call

// Serve turns: read a byte, time the calls of a turn, and write their median.
template <typename Call>
void serve(int request_fd, int reply_fd, Call call) {
  for (char byte; read(request_fd, &byte, 1) == 1;) {
    call();
    std::vector<double> times;
    for (int at = 0; at < kCalls; ++at) times.push_back(milliseconds(call));
    const double found = median(times);
    if (write(reply_fd, &found, sizeof found) != sizeof found) break;
  }
}

void serve_library(const segdeploy::Inference& inference, int request_fd, int reply_fd);
void serve_bare(const segdeploy::Inference& inference, const char* path, int threads,
                int request_fd, int reply_fd);

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
    request_fd_ = to[1];
    reply_fd_ = from[0];
  }
  ~Child() {
    close(request_fd_);
    wait(nullptr);
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  double turn() const {
    double found = 0;
    if (write(request_fd_, "t", 1) != 1 || read(reply_fd_, &found, sizeof found) != sizeof found)
      std::exit(2);
    return found;
  }

 private:
  int request_fd_ = 0;
  int reply_fd_ = 0;
};

std::vector<std::uint8_t> noise(const segdeploy::Contract& contract) {
  std::vector<std::uint8_t> image(static_cast<std::size_t>(contract.height * contract.width * 3));
  std::mt19937 random(0);
  for (auto& byte : image) byte = static_cast<std::uint8_t>(random());
  return image;
}

void serve_library(const segdeploy::Inference& inference, int request_fd, int reply_fd) {
  const auto image = noise(inference.contract());
  const segdeploy::ImageView view{image.data(), inference.contract().height,
                                  inference.contract().width};
  std::vector<std::uint8_t> labels(image.size() / 3);
  serve(request_fd, reply_fd, [&] { inference.predict(view, labels.data()); });
}

// `inference` has loaded ONNX Runtime. Its own session stays idle.
void serve_bare(const segdeploy::Inference& inference, const char* path, int threads,
                int request_fd, int reply_fd) {
  const auto& contract = inference.contract();
  const auto image = noise(contract);
  segdeploy::Prepared prepared;
  segdeploy::Preprocessor(contract).run({image.data(), contract.height, contract.width}, prepared);
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
  serve(request_fd, reply_fd, [&] {
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
