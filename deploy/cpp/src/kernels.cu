// Preprocessing and postprocessing kernels. Their results equal those of the CPU code to the last
// bit, which requires compilation without fused multiply-add (-fmad=false).

extern "C" {

// The filter taps of one output of a resize along one axis, laid out as Filter::Tap in resize.hpp.
struct Tap {
  int first;
  int count;
  unsigned long long weights;
};

constexpr int kBits = 22;

__device__ unsigned char rounded(int sum) {
  const int value = sum >> kBits;
  return static_cast<unsigned char>(value < 0 ? 0 : value > 255 ? 255 : value);
}

// Resize (height, width, 3) to (height, to_width, 3), with one thread per output byte.
__global__ void resize_columns(const unsigned char* source, int height, int width,
                               unsigned char* target, int to_width, const Tap* taps,
                               const int* weights) {
  const int x = blockIdx.x * blockDim.x + threadIdx.x;
  const int y = blockIdx.y;
  if (x >= to_width * 3 || y >= height) return;
  const Tap tap = taps[x / 3];
  const unsigned char* pixel = source + (static_cast<size_t>(y) * width + tap.first) * 3 + x % 3;
  int sum = 1 << (kBits - 1);
  for (int at = 0; at < tap.count; ++at) sum += pixel[at * 3] * weights[tap.weights + at];
  target[static_cast<size_t>(y) * to_width * 3 + x] = rounded(sum);
}

// Resize (height, width, 3) to (to_height, width, 3), with one thread per output byte.
__global__ void resize_rows(const unsigned char* source, int width, unsigned char* target,
                            int to_height, const Tap* taps, const int* weights) {
  const int x = blockIdx.x * blockDim.x + threadIdx.x;
  const int y = blockIdx.y;
  const int line = width * 3;
  if (x >= line || y >= to_height) return;
  const Tap tap = taps[y];
  int sum = 1 << (kBits - 1);
  for (int at = 0; at < tap.count; ++at) {
    sum += source[static_cast<size_t>(tap.first + at) * line + x] * weights[tap.weights + at];
  }
  target[static_cast<size_t>(y) * line + x] = rounded(sum);
}

// Convert (pixels, 3) bytes to 3 planes of floats. `table` (3, 256) holds the normalized value of
// each byte per channel.
__global__ void normalize(const unsigned char* bytes, int pixels, int is_bgr, const float* table,
                          float* planes) {
  const int at = blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= pixels) return;
  for (int channel = 0; channel < 3; ++channel) {
    const unsigned char byte = bytes[at * 3 + (is_bgr ? 2 - channel : channel)];
    planes[static_cast<size_t>(channel) * pixels + at] = table[channel * 256 + byte];
  }
}

// Copy (pixels, 3) bytes in the network's channel order.
__global__ void reorder(const unsigned char* bytes, int pixels, int is_bgr, unsigned char* out) {
  const int at = blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= pixels) return;
  for (int channel = 0; channel < 3; ++channel) {
    out[at * 3 + channel] = bytes[at * 3 + (is_bgr ? 2 - channel : channel)];
  }
}

// Set the flag if a score is NaN or infinity.
__global__ void find_not_finite(const float* scores, unsigned long long count, int* flag) {
  const unsigned long long step = static_cast<unsigned long long>(gridDim.x) * blockDim.x;
  for (unsigned long long at = blockIdx.x * blockDim.x + threadIdx.x; at < count; at += step) {
    if ((__float_as_uint(scores[at]) & 0x7F800000u) == 0x7F800000u) *flag = 1;
  }
}

struct Near {
  int low;
  int high;
  float share;
};

// As in numpy's arithmetic, positions are float64 and weights are float32.
__device__ Near tap_of(int place, int source, int target) {
  if (source == target) return {place, place, 0.0f};
  const double scale = static_cast<double>(source) / target;
  double center = (place + 0.5) * scale - 0.5;
  center = center < 0.0 ? 0.0 : center > source - 1.0 ? source - 1.0 : center;
  const int low = static_cast<int>(floor(center));
  return {low, low + 1 < source ? low + 1 : source - 1, static_cast<float>(center - low)};
}

// Find the best class of bilinearly upsampled scores (classes, height, width), with one thread per
// output pixel.
__global__ void best_classes(const float* scores, int classes, int height, int width,
                             unsigned char* labels, int to_height, int to_width) {
  const int x = blockIdx.x * blockDim.x + threadIdx.x;
  const int y = blockIdx.y;
  if (x >= to_width || y >= to_height) return;
  const Near row = tap_of(y, height, to_height);
  const Near column = tap_of(x, width, to_width);
  float best = 0;
  int found = 0;
  for (int id = 0; id < classes; ++id) {
    const float* map = scores + static_cast<size_t>(id) * height * width;
    const float* upper = map + static_cast<size_t>(row.low) * width;
    const float* lower = map + static_cast<size_t>(row.high) * width;
    float left = upper[column.low];
    float right = upper[column.high];
    if (height != to_height) {
      left = left + (lower[column.low] - left) * row.share;
      right = right + (lower[column.high] - right) * row.share;
    }
    const float value = width != to_width ? left + (right - left) * column.share : left;
    if (id == 0 || value > best) {
      best = value;
      found = id;
    }
  }
  labels[static_cast<size_t>(y) * to_width + x] = static_cast<unsigned char>(found);
}

// As in PyTorch's arithmetic, all values are float32.
__device__ Near cell_of(int place, int source, int target, int align_corners) {
  float scale = static_cast<float>(source) / static_cast<float>(target);
  if (align_corners) {
    scale = target > 1 ? static_cast<float>(source - 1) / static_cast<float>(target - 1) : 0.0f;
  }
  float at = static_cast<float>(place);
  at = align_corners ? at * scale : (at + 0.5f) * scale - 0.5f;
  const int index = static_cast<int>(fminf(floorf(at), static_cast<float>(source - 1)));
  const int low = index < 0 ? 0 : index;
  const float share = at - static_cast<float>(low);
  return {low, index + 1 < source ? index + 1 : source - 1,
          share < 0.0f   ? 0.0f
          : share > 1.0f ? 1.0f
                         : share};
}

// Find the best class of low-resolution logits, upsampled to the network's size (to_height,
// to_width), for the pixels of an image (high, wide) by nearest neighbor. The arithmetic is that of
// Labeller::best_classes_of_low_resolution.
__global__ void best_classes_of_low_resolution(const float* scores, int classes, int height,
                                               int width, int to_height, int to_width,
                                               int align_corners, unsigned char* labels, int high,
                                               int wide) {
  const int x = blockIdx.x * blockDim.x + threadIdx.x;
  const int y = blockIdx.y;
  if (x >= wide || y >= high) return;
  const Near row =
      cell_of(static_cast<int>((y + 0.5) * to_height / high), height, to_height, align_corners);
  const Near column =
      cell_of(static_cast<int>((x + 0.5) * to_width / wide), width, to_width, align_corners);
  const size_t plane = static_cast<size_t>(height) * width;
  const size_t places[4] = {static_cast<size_t>(row.low) * width + column.low,
                            static_cast<size_t>(row.low) * width + column.high,
                            static_cast<size_t>(row.high) * width + column.low,
                            static_cast<size_t>(row.high) * width + column.high};
  float tops[4], floor_of_all = -INFINITY;
  int leaders[4];
  for (int id = 0; id < classes; ++id) {
    float least = INFINITY;
    for (int corner = 0; corner < 4; ++corner) {
      const float value = scores[id * plane + places[corner]];
      least = fminf(least, value);
      if (id == 0 || value > tops[corner]) {
        tops[corner] = value;
        leaders[corner] = id;
      }
    }
    floor_of_all = fmaxf(floor_of_all, least);
  }
  int found = leaders[0];
  if (found != leaders[1] || found != leaders[2] || found != leaders[3]) {
    float first[4], best = 0;
    bool has_first = false;
    for (int id = 0; id < classes; ++id) {
      float corners[4], most = -INFINITY;
      for (int corner = 0; corner < 4; ++corner) {
        corners[corner] = scores[id * plane + places[corner]];
        most = fmaxf(most, corners[corner]);
      }
      if (most < floor_of_all) continue;
      if (!has_first) {
        has_first = true;
        found = id;
        for (int corner = 0; corner < 4; ++corner) first[corner] = corners[corner];
        continue;
      }
      for (int corner = 0; corner < 4; ++corner) corners[corner] -= first[corner];
      const float upper = corners[0] * (1 - column.share) + corners[1] * column.share;
      const float lower = corners[2] * (1 - column.share) + corners[3] * column.share;
      const float lead = upper * (1 - row.share) + lower * row.share;
      if (lead > best) {
        best = lead;
        found = id;
      }
    }
  }
  labels[static_cast<size_t>(y) * wide + x] = static_cast<unsigned char>(found);
}

// Resize labels (height, width) by nearest neighbor with half-pixel centers.
__global__ void nearest(const unsigned char* source, int height, int width, unsigned char* labels,
                        int high, int wide) {
  const int x = blockIdx.x * blockDim.x + threadIdx.x;
  const int y = blockIdx.y;
  if (x >= wide || y >= high) return;
  const int row = static_cast<int>((y + 0.5) * height / high);
  const int column = static_cast<int>((x + 0.5) * width / wide);
  labels[static_cast<size_t>(y) * wide + x] = source[static_cast<size_t>(row) * width + column];
}

}  // extern "C"
