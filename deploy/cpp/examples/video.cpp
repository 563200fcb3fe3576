// video MODEL HEIGHT WIDTH: read frames of RGB bytes from stdin, blend the class colors over them,
// and write them to stdout.
//     ffmpeg -i road.mp4 -f rawvideo -pix_fmt rgb24 - | video road.engine 720 960 |
//       ffplay -f rawvideo -pixel_format rgb24 -video_size 960x720 -
// One thread reads and submits frames. The other thread waits for labels and writes. While a frame
// is segmented, the next frames are read, and the previous frame is painted.
#include <segdeploy/segdeploy.hpp>

#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace {

constexpr std::size_t kMaxFrames = 4;  // in flight; more frames add latency, not throughput

struct Frame {
  std::vector<std::uint8_t> rgb;
  std::future<segdeploy::Labels> labels;
};

// A queue of frames in their order. An empty frame marks the end.
class Queue {
 public:
  void push(Frame frame) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return frames_.size() < kMaxFrames; });
    frames_.push_back(std::move(frame));
    changed_.notify_all();
  }

  Frame pop() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return !frames_.empty(); });
    Frame frame = std::move(frames_.front());
    frames_.pop_front();
    changed_.notify_all();
    return frame;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Frame> frames_;
};

// Read frames until the stream ends, or until a frame cannot be submitted.
void read_frames(const segdeploy::Model& model, int height, int width, Queue& queue) {
  for (bool is_sound = true; is_sound;) {
    Frame frame;
    frame.rgb.resize(static_cast<std::size_t>(height) * width * 3);
    if (std::fread(frame.rgb.data(), 1, frame.rgb.size(), stdin) != frame.rgb.size()) break;
    try {
      frame.labels = model.submit({frame.rgb.data(), height, width});
    } catch (...) {
      std::promise<segdeploy::Labels> failed;
      failed.set_exception(std::current_exception());
      frame.labels = failed.get_future();
      is_sound = false;
    }
    queue.push(std::move(frame));  // the address of the bytes stays the same
  }
  queue.push({});
}

}  // namespace

int main(int count, char** words) try {
  if (count != 4) throw segdeploy::Error("usage: video MODEL HEIGHT WIDTH < frames.rgb");
  const int height = std::atoi(words[2]), width = std::atoi(words[3]);
  if (height < 1 || width < 1) throw segdeploy::Error("HEIGHT and WIDTH are positive");
  const segdeploy::Model model(words[1]);
  Queue queue;
  std::thread reader([&] { read_frames(model, height, width, queue); });
  std::exception_ptr failure;
  for (Frame frame = queue.pop(); !frame.rgb.empty(); frame = queue.pop()) {
    try {
      const segdeploy::Labels labels = frame.labels.get();
      std::vector<std::uint8_t> painted(frame.rgb.size());
      segdeploy::overlay({frame.rgb.data(), height, width}, labels, model.palette(),
                         painted.data());
      std::fwrite(painted.data(), 1, painted.size(), stdout);
    } catch (...) {
      failure = std::current_exception();  // keep emptying the queue until the reader ends
    }
  }
  reader.join();
  if (failure) std::rethrow_exception(failure);
} catch (const std::exception& error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 2;
}
