// A network with the preprocessing and postprocessing of its contract.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend.hpp"
#include "class_scores.hpp"
#include "inference_options.hpp"
#include "labels.hpp"
#include "pool.hpp"
#include "preprocess.hpp"
#include "segdeploy/segdeploy.hpp"

namespace segdeploy {

// The buffers of one call.
struct Workspace {
  Prepared prepared;
  Labeller labeller;
  std::vector<std::uint8_t> bytes;  // inputs of several images, batched
  std::vector<float> floats;
};

// Check a view, and resize `labels` to its size. Throws Error.
void fit(Labels& labels, const ImageView& image);

class Inference {
 public:
  Inference(const std::string& path, const Options& options);

  const Contract& contract() const { return backend_->contract(); }
  const Backend& backend() const { return *backend_; }

  // Write labels at the image's own size into height x width bytes.
  void predict(const ImageView& image, std::uint8_t* labels) const;
  void predict(const ImageView& image, Labels& labels) const;
  std::vector<Labels> predict(const std::vector<ImageView>& images) const;
  Labels predict(const ImageView& image, const InferenceOptions& options) const;
  ClassScores probabilities(const ImageView& image, const InferenceOptions& options) const;

  // Run one image with preprocessing on the CPU. The network's input stays in `work`.
  void run(const ImageView& image, Workspace& work, Reader& reader) const;
  // As above. Returns the value of `clock` at the time when the network's input was ready.
  double run(const ImageView& image, Workspace& work, Reader& reader, double (*clock)()) const;
  // Compute labels from one image's output.
  void read(const OutputView& output, const ImageView& image, Workspace& work,
            std::uint8_t* labels) const;

 private:
  int most_images() const;
  void predict_together(const ImageView* images, int count, Labels* labels) const;
  ClassScores scores(const ImageView& image, const InferenceOptions& options,
                     Workspace& work) const;
  ClassScores fused(const ImageView& image, const InferenceOptions& options, Workspace& work) const;
  ClassScores run_scores(const Input& input) const;
  void check_scales(const InferenceOptions& options) const;
  // Run overlapping windows of an image at its own size. Blend their scores, or their labels for a
  // network with labels output.
  WindowBlender tiled(const ImageView& image, const InferenceOptions& options,
                      Workspace& work) const;
  void add_window(const OutputView& output, const Window& place, Workspace& work,
                  WindowBlender& blender) const;
  std::array<int, 2> window(int height, int width) const;
  void check_finite(const float* values, std::size_t count) const;

  std::string path_;
  std::unique_ptr<Backend> backend_;
  Preprocessor preprocessor_;
  mutable Pool<Workspace> workspaces_;
};

}  // namespace segdeploy
