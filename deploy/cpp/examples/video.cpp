// video MODEL HEIGHT WIDTH: frames of RGB bytes from stdin, with the classes' colours to stdout.
//     ffmpeg -i road.mp4 -f rawvideo -pix_fmt rgb24 - | video road.engine 720 960 |
//       ffplay -f rawvideo -pixel_format rgb24 -video_size 960x720 -
// One thread reads and submits, the other waits for labels and writes: while a frame is segmented, the
// next ones are read, and the one before is painted.
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

constexpr std::size_t kMostFrames = 4;  // on their way at once: more would be older, not faster

struct Frame {
  std::vector<std::uint8_t> rgb;
  std::future<segdeploy::Labels> labels;
};

// Frames in their order; an empty one ends them.
class Queue {
 public:
  void push(Frame frame) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return frames_.size() < kMostFrames; });
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

// Reads until the stream ends; a frame that cannot be submitted ends it, too.
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
    queue.push(std::move(frame));  // the bytes stay where they are
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
      failure = std::current_exception();  // the reader is served to its end
    }
  }
  reader.join();
  if (failure) std::rethrow_exception(failure);
} catch (const std::exception& error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 2;
}
