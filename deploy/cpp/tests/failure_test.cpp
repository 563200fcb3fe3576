// A failed call leaves no partial state: running out of memory at any allocation of a call does not
// change the labels of the next call.
#include <cmath>
#include <cstdlib>
#include <new>
#include <vector>

#include "check.hpp"
#include "class_scores.hpp"
#include "labels.hpp"
#include "pool.hpp"
#include "preprocess.hpp"
#include "workers.hpp"

namespace {

long until_failure = -1;  // remaining allocations; negative: unlimited

}  // namespace

void* operator new(std::size_t size) {
  if (until_failure == 0) throw std::bad_alloc();
  if (until_failure > 0) --until_failure;
  void* memory = std::malloc(size == 0 ? 1 : size);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace {

using namespace segdeploy;

struct Work {
  Prepared prepared;
  Labeller labeller;
};

Contract contract_of(Upsampling upsampling) {
  Contract contract;
  contract.classes.resize(5);
  contract.height = 24;
  contract.width = 32;
  contract.std = {1, 1, 1};
  contract.upsampling = upsampling;
  return contract;
}

void check_failures(Upsampling upsampling) {
  const Contract contract = contract_of(upsampling);
  const Preprocessor preprocessor(contract);
  std::vector<std::uint8_t> image(50 * 41 * 3);
  std::vector<float> scores(5 * 7 * 9);
  for (std::size_t at = 0; at < image.size(); ++at) image[at] = static_cast<std::uint8_t>(at * 7);
  for (std::size_t at = 0; at < scores.size(); ++at) scores[at] = std::sin(static_cast<float>(at));
  std::vector<std::uint8_t> labels(50 * 41);
  const auto run = [&](Work& work) {
    preprocessor.run({image.data(), 50, 41}, work.prepared);
    label_scores(contract, {scores.data(), 5, 7, 9}, 50, 41, work.labeller, labels.data());
  };
  Work sound;
  run(sound);
  const auto wanted_labels = labels;
  const auto wanted_input = sound.prepared.floats;
  int failures = 0;
  for (long limit = 0; limit < 200; ++limit) {
    Work work;  // the same object fails, and is used again
    until_failure = limit;
    try {
      run(work);
      until_failure = -1;
      break;  // no allocation was left to fail
    } catch (const std::bad_alloc&) {
      until_failure = -1;
      ++failures;
    }
    labels.assign(labels.size(), 77);
    run(work);
    CHECK(labels == wanted_labels);
    CHECK(work.prepared.floats == wanted_input);
  }
  CHECK(failures > 5);
}

// The object of a failed call is discarded, and its place in the pool is free again.
void check_pool() {
  int made = 0;
  Pool<int> pool([&] { return std::make_unique<int>(++made); }, 1);
  for (int round = 1; round <= 3; ++round) {
    try {
      const Pool<int>::Lease lease(pool);
      CHECK(*lease == round);
      throw Error("a call that fails");
    } catch (const Error&) {
    }
  }
  {
    const Pool<int>::Lease kept(pool);
    CHECK(*kept == 4);
  }
  const Pool<int>::Lease again(pool);
  CHECK(*again == 4);
}

void check_maximum() {
  ClassScores total{1, 1, 3, {1, NAN, 3}};
  take_larger(total, {1, 1, 3, {NAN, 2, 4}});
  CHECK(std::isnan(total.data[0]) && std::isnan(total.data[1]) && total.data[2] == 4);
}

void check_workers() {
  int done = 0;
  {
    Workers workers(1, 4);
    for (int at = 0; at < 100; ++at) workers.give([&] { ++done; });
  }
  CHECK(done == 100);
}

}  // namespace

int main() {
  check_failures(Upsampling::none);
  check_failures(Upsampling::align_corners);
  check_failures(Upsampling::half_pixel);
  check_pool();
  check_maximum();
  check_workers();
  std::vector<std::uint8_t> rgb(12), more(9);
  const ImageView image{rgb.data(), 2, 2};
  check_refused("overlay: the labels are", [&] { overlay(image, {2, 2, more}, {}, rgb.data()); });
  return 0;
}
