// segdeploy-bench --model M: measure the latency of a call in C++, by the protocol of `segdeploy
// bench`: a warm-up until the latency is stable, then short rounds, and the median of each round.
// --out FILE writes the result as JSON. `segdeploy bench FILE --reference ...` takes that file as a
// candidate: it starts this program with --serve, and interleaves its rounds with those of the
// other candidates.
#include <sys/prctl.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "arguments.hpp"
#include "files.hpp"
#include "inference.hpp"
#include "json.hpp"
#include "sha256.hpp"

namespace segdeploy {
namespace {

constexpr const char* kUsage =
    "usage: segdeploy-bench --model MODEL [--out FILE.json] [--seconds S] [--threads N] "
    "[--contexts N] [--provider cpu|cuda|tensorrt] [--preprocess-on cpu|gpu]";
constexpr int kSchema = 3;
constexpr int kRounds = 50;
constexpr int kMinCalls = 2;
// The warm-up ends when the median of kWindow calls changes by less than kMoved (a fraction), or
// after kWarmUpSeconds.
constexpr int kWindow = 5;
constexpr double kMoved = 0.05;
constexpr double kWarmUpSeconds = 8;

using Times = std::map<std::string, std::vector<double>>;  // seconds by stage

double now() {
  using Clock = std::chrono::steady_clock;
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

double quantile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  const double place = share * static_cast<double>(values.size() - 1);
  const auto low = static_cast<std::size_t>(place);
  const std::size_t high = std::min(low + 1, values.size() - 1);
  return values[low] + (values[high] - values[low]) * (place - static_cast<double>(low));
}

// Records the time at which the network's run ends, then computes the labels.
class TimingReader final : public Reader {
 public:
  TimingReader(const Inference& inference, const ImageView& image, Workspace& work,
               std::vector<std::uint8_t>& labels)
      : inference_(inference), image_(image), work_(work), labels_(labels) {}

  void read(const OutputView& output) override {
    ran = now();
    inference_.read(output, image_, work_, labels_.data());
  }

  double ran = 0;

 private:
  const Inference& inference_;
  const ImageView& image_;
  Workspace& work_;
  std::vector<std::uint8_t>& labels_;
};

// A model, and an image of the network's input size, as in Python.
class Bench {
 public:
  Bench(const std::string& path, const Options& options) : inference_(path, options) {
    const Contract& contract = inference_.contract();
    std::mt19937 random(0);
    pixels_.resize(static_cast<std::size_t>(contract.height * contract.width) * 3);
    for (auto& byte : pixels_) byte = static_cast<std::uint8_t>(random());
    image_ = {pixels_.data(), contract.height, contract.width};
    labels_.resize(pixels_.size() / 3);
    is_on_gpu_ = inference_.backend().label(image_, labels_.data());
  }

  const Inference& inference() const { return inference_; }

  // Time one call from an image's bytes to its labels. With processing on the GPU, the call is one
  // stage.
  void call(Times& times) {
    const double began = now();
    if (is_on_gpu_) {
      inference_.predict(image_, labels_.data());
      add(times, 0, now() - began, 0);
      return;
    }
    TimingReader reader(inference_, image_, work_, labels_);
    const double prepared = inference_.run(image_, work_, reader, now);
    add(times, prepared - began, reader.ran - prepared, now() - reader.ran);
  }

  Times burst(double seconds) {
    Times aside, times;
    call(aside);  // untimed: the caches still hold another candidate's data
    const double end = now() + seconds;
    for (int calls = 0; calls < kMinCalls || now() < end; ++calls) call(times);
    return times;
  }

  bool warm_up() {
    const double end = now() + kWarmUpSeconds;
    for (double before = INFINITY; now() < end;) {
      Times times;
      for (int calls = 0; calls < kWindow; ++calls) call(times);
      const double median = quantile(times["network"], 0.5);
      if (std::abs(median - before) < kMoved * before) return true;
      before = median;
    }
    return false;
  }

  // Run an input of another shape once.
  void run_shape(const Shape& shape) const {
    const Input sized{nullptr, shape};
    const std::vector<float> zeros(sized.values());  // also enough for byte input
    struct Ignoring final : Reader {
      void read(const OutputView&) override {}
    } ignoring;
    inference_.backend().run({zeros.data(), shape}, ignoring);
  }

 private:
  static void add(Times& times, double before, double network, double after) {
    times["preprocessing"].push_back(before);
    times["network"].push_back(network);
    times["postprocessing"].push_back(after);
  }

  Inference inference_;
  Workspace work_;
  std::vector<std::uint8_t> pixels_, labels_;
  ImageView image_;
  bool is_on_gpu_ = false;
};

long peak_mib() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("VmHWM:", 0) == 0) return std::atol(line.c_str() + 6) / 1024;
  }
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss / 1024;
}

void say(const json& answer) { std::cout << answer.dump() << std::endl; }

json answered(Bench& bench, const json& request) {
  if (request.contains("end")) return {{"peak_mib", peak_mib()}};
  try {
    if (request.contains("shape")) {
      bench.run_shape(request.at("shape").get<Shape>());
      return json::object();
    }
    if (request.value("batch", 1) != 1 || request.value("clients", 1) != 1 ||
        !request.value("fps", json()).is_null()) {
      return {
          {"refused", "segdeploy-bench times one client's calls at batch 1, one after another"}};
    }
    const double began = now();
    const Times times = bench.burst(request.at("seconds").get<double>());
    return {{"times", times}, {"wall", now() - began}};
  } catch (const Error& error) {
    return {{"refused", error.what()}};
  }
}

// Answer the request lines of `segdeploy bench` until the input ends.
int serve(const std::string& model, Options options) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);  // a network that never returns must not outlive the bench
  std::string line;
  if (!std::getline(std::cin, line)) return 2;
  try {
    const json candidate = json::parse(line);
    if (candidate.value("threads", json()).is_number_integer()) {
      options.threads = candidate["threads"].get<int>();
    }
    if (!candidate.value("scales", json::array()).empty()) {
      throw Error("segdeploy-bench times one scale, and no loop");
    }
    const double began = now();
    Bench bench(model, options);
    const double loaded = now();
    Times first;
    bench.call(first);
    const bool is_stable = bench.warm_up();
    say({{"load_s", loaded - began},
         {"first_ms", 1e3 * first["network"][0]},
         {"stable", is_stable},
         {"scales", json::object()}});
    while (std::getline(std::cin, line)) say(answered(bench, json::parse(line)));
  } catch (const std::exception& error) {
    say({{"error", error.what()}, {"is_incompatible", false}});
    return 2;
  }
  return 0;
}

std::string sha256_of(const std::string& path) {
  const std::string content = content_of(path);
  return sha256(content.data(), content.size());
}

// Return the options with which the model was opened. The file does not state the program and the
// library that ran the model: the reader of the file chooses them.
json settings(const Arguments& request) {
  json found = json::object();
  const Options options = request.options();
  if (options.threads != 0) found["threads"] = options.threads;
  if (request.names("--contexts")) found["contexts"] = options.contexts;
  if (!options.provider.empty()) found["provider"] = options.provider;
  if (request.names("--preprocess-on"))
    found["preprocess_on"] = options.gpu_preprocessing ? "gpu" : "cpu";
  return found;
}

int measure(const Arguments& request) {
  const double seconds = request.number("--seconds", 5);
  Bench bench(request.model(), request.options());
  const bool is_stable = bench.warm_up();
  Times all;
  std::vector<double> medians;
  for (int round = 0; round < kRounds; ++round) {
    const Times times = bench.burst(seconds / kRounds);
    medians.push_back(1e3 * quantile(times.at("network"), 0.5));
    for (const auto& [stage, taken] : times) {
      all[stage].insert(all[stage].end(), taken.begin(), taken.end());
    }
  }
  const auto& calls = all["network"];
  const long peak = peak_mib();  // before the file is read for its hash
  json found = {{"schema", kSchema},
                {"settings", settings(request)},
                {"model", std::filesystem::absolute(request.model()).string()},
                {"model_sha256", sha256_of(request.model())},
                {"runtime", bench.inference().backend().name()},
                {"calls", calls.size()},
                {"stable", is_stable},
                {"median_ms", 1e3 * quantile(calls, 0.5)},
                {"p90_ms", 1e3 * quantile(calls, 0.9)},
                {"p99_ms", 1e3 * quantile(calls, 0.99)},
                {"round_medians_ms", medians},
                {"peak_mib", peak}};
  for (const auto& [stage, taken] : all) found["stages_ms"][stage] = 1e3 * quantile(taken, 0.5);
  const std::string out = request.text("--out", "");
  if (!out.empty()) write_whole(out, found.dump(2) + "\n");
  const auto& stages = found["stages_ms"];
  std::printf("%s: %zu calls, median %.3f ms (p90 %.3f, p99 %.3f); before %.3f ms, after %.3f ms\n",
              found["runtime"].get<std::string>().c_str(), calls.size(),
              found["median_ms"].get<double>(), found["p90_ms"].get<double>(),
              found["p99_ms"].get<double>(), stages["preprocessing"].get<double>(),
              stages["postprocessing"].get<double>());
  return 0;
}

}  // namespace
}  // namespace segdeploy

int main(int count, char** words) {
  using namespace segdeploy;
  try {
    const Arguments request(count, words,
                            {"--model", "--out", "--seconds", "--threads", "--provider",
                             "--preprocess-on", "--contexts"},
                            {"--serve"}, kUsage);
    if (request.model().empty() || !request.others().empty()) throw Error(kUsage);
    if (request.has("--serve")) return serve(request.model(), request.options());
    return measure(request);
  } catch (const std::bad_alloc&) {
    std::fputs("error: out of memory; give smaller images, or fewer --threads\n", stderr);
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", printable(error.what()).c_str());
    return 2;
  }
}
