// A network with its contract's pre- and postprocessing.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend.hpp"
#include "labels.hpp"
#include "maps.hpp"
#include "pool.hpp"
#include "preprocess.hpp"
#include "segdeploy/segdeploy.hpp"

namespace segdeploy {

// What one call works with.
struct Workspace {
  Prepared prepared;
  Labeller labeller;
  std::vector<std::uint8_t> bytes;  // of several pictures
  std::vector<float> floats;
};

// Makes room for the labels of a view, which is checked first. Throws Error.
void fit(Labels& labels, const ImageView& image);

class Inference {
 public:
  Inference(const std::string& path, const Options& options);

  const Contract& contract() const { return backend_->contract(); }
  const Backend& backend() const { return *backend_; }

  // Labels of the picture's own size, into height x width bytes.
  void predict(const ImageView& image, std::uint8_t* labels) const;
  void predict(const ImageView& image, Labels& labels) const;
  std::vector<Labels> predict(const std::vector<ImageView>& images) const;
  Labels predict(const ImageView& image, const Passes& passes) const;
  Maps probabilities(const ImageView& image, const Passes& passes) const;

  // Runs one picture on the CPU's way: what the network was given stays in `work`.
  void run(const ImageView& image, Workspace& work, Reader& reader) const;
  // The same; gives what `clock` said when the network's input was ready.
  double run(const ImageView& image, Workspace& work, Reader& reader, double (*clock)()) const;
  // Makes labels of one picture's output.
  void read(const OutputView& output, const ImageView& image, Workspace& work,
            std::uint8_t* labels) const;

 private:
  int most_pictures() const;
  void predict_together(const ImageView* images, int count, Labels* labels) const;
  Maps scores(const ImageView& image, const Passes& passes, Workspace& work) const;
  Maps fused(const ImageView& image, const Passes& passes, Workspace& work) const;
  Maps run_maps(const Input& input) const;
  void check_scales(const Passes& passes) const;
  void tile(const ImageView& image, const Passes& passes, Workspace& work, Labels* labels,
            Maps* scores) const;
  std::array<int, 2> window(int height, int width) const;
  void check_finite(const float* values, std::size_t count) const;

  std::string path_;
  std::unique_ptr<Backend> backend_;
  Preprocessor preprocessor_;
  mutable Pool<Workspace> workspaces_;
};

}  // namespace segdeploy
