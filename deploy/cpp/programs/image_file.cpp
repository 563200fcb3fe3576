#include "image_file.hpp"

#include <png.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <initializer_list>
#include <memory>
#include <utility>

// libjpeg's headers need <cstdio> before them.
#include <jerror.h>
#include <jpeglib.h>

#include "files.hpp"

namespace segdeploy {
namespace {

constexpr std::size_t kMaxPixels = 100'000'000;
constexpr unsigned kOrientation = 0x0112;

struct Close {
  void operator()(std::FILE* file) const { std::fclose(file); }
};

// The result of a decoder: the pixels, the EXIF block, and the reason if it failed.
struct Decoded {
  RgbImage image;
  std::vector<std::uint8_t> exif;
  std::jmp_buf back;
  std::string damage;   // the decoder library's message, if the file is damaged
  std::string refusal;  // segdeploy's message, if the file is intact but not supported
};

std::string too_deep(int bits) {
  return "has " + std::to_string(bits) + " bits a channel, and 8 are read; convert it to 8 bits";
}

std::string too_large(std::size_t height, std::size_t width) {
  return std::to_string(width) + "x" + std::to_string(height) + " pixels are over the limit of " +
         std::to_string(kMaxPixels) + "; scale it";
}

// Set the image's size and allocate its pixels. Returns false with a refusal if it is too large.
bool take_size(Decoded& decoded, std::size_t height, std::size_t width) {
  if (height * width > kMaxPixels) {
    decoded.refusal = too_large(height, width);
    return false;
  }
  decoded.image.height = static_cast<int>(height);
  decoded.image.width = static_cast<int>(width);
  decoded.image.rgb.resize(height * width * 3);
  return true;
}

struct JpegError {
  jpeg_error_mgr manager;  // must be first: libjpeg only knows this part
  Decoded* decoded;
  bool has_header;
  bool has_all_rows;
};

void leave_jpeg(j_common_ptr info) {
  auto* error = reinterpret_cast<JpegError*>(info->err);
  char message[JMSG_LENGTH_MAX];
  info->err->format_message(info, message);
  if (info->err->msg_code == JERR_BAD_PRECISION) {
    error->decoded->refusal = too_deep(info->err->msg_parm.i[0]);
  } else if (info->err->msg_code == JERR_IMAGE_TOO_BIG) {
    const auto* frame = reinterpret_cast<jpeg_decompress_struct*>(info);
    error->decoded->refusal = too_large(frame->image_height, frame->image_width);
  } else {
    error->decoded->damage = message;
  }
  std::longjmp(error->decoded->back, 1);
}

// Refuse a file with missing rows, which libjpeg would fill with gray, or with stray bytes before
// its header. Other damage inside the compressed data is decoded as in Python's reader, which gets
// no notice of it.
void warn_jpeg(j_common_ptr info, int level) {
  const auto* error = reinterpret_cast<JpegError*>(info->err);
  const int code = info->err->msg_code;
  if (level < 0 && ((code == JWRN_JPEG_EOF && !error->has_all_rows) ||
                    (code == JWRN_EXTRANEOUS_DATA && !error->has_header))) {
    leave_jpeg(info);
  }
}

// longjmp skips destructors, so the caller owns every object that has a destructor.
bool decode_jpeg(std::FILE* file, Decoded& decoded) {
  jpeg_decompress_struct info;
  JpegError error{};
  error.decoded = &decoded;
  info.err = jpeg_std_error(&error.manager);
  error.manager.error_exit = leave_jpeg;
  error.manager.emit_message = warn_jpeg;
  if (setjmp(decoded.back) != 0) {
    jpeg_destroy_decompress(&info);
    return false;
  }
  jpeg_create_decompress(&info);
  jpeg_stdio_src(&info, file);
  jpeg_save_markers(&info, JPEG_APP0 + 1, 0xFFFF);
  jpeg_read_header(&info, TRUE);
  error.has_header = true;
  if (info.num_components == 4) decoded.refusal = "is a CMYK image; convert it to RGB";
  if (!decoded.refusal.empty() || !take_size(decoded, info.image_height, info.image_width)) {
    jpeg_destroy_decompress(&info);
    return false;
  }
  for (auto* marker = info.marker_list; marker != nullptr; marker = marker->next) {
    if (marker->data_length < 6 || std::memcmp(marker->data, "Exif\0\0", 6) != 0) continue;
    decoded.exif.insert(decoded.exif.end(), marker->data + 6, marker->data + marker->data_length);
  }
  info.out_color_space = JCS_RGB;
  jpeg_start_decompress(&info);
  const std::size_t row_bytes = static_cast<std::size_t>(info.output_width) * 3;
  while (info.output_scanline < info.output_height) {
    JSAMPROW row = decoded.image.rgb.data() + info.output_scanline * row_bytes;
    jpeg_read_scanlines(&info, &row, 1);
  }
  error.has_all_rows = true;
  jpeg_finish_decompress(&info);
  jpeg_destroy_decompress(&info);
  return true;
}

void leave_png(png_structp png, png_const_charp message) {
  auto* decoded = static_cast<Decoded*>(png_get_error_ptr(png));
  decoded->damage = message;
  std::longjmp(decoded->back, 1);
}

void ignore_png(png_structp, png_const_charp) {}

// As in decode_jpeg, the caller owns every object. `rows` is filled here, and read by libpng.
bool decode_png(std::FILE* file, Decoded& decoded, std::vector<png_bytep>& rows) {
  png_structp png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &decoded, leave_png, ignore_png);
  png_infop info = png == nullptr ? nullptr : png_create_info_struct(png);
  if (info == nullptr) {
    png_destroy_read_struct(&png, nullptr, nullptr);
    decoded.damage = "out of memory";
    return false;
  }
  if (setjmp(decoded.back) != 0) {
    png_destroy_read_struct(&png, &info, nullptr);
    return false;
  }
  png_init_io(png, file);
  png_set_crc_action(png, PNG_CRC_ERROR_QUIT, PNG_CRC_ERROR_QUIT);
  png_set_user_limits(png, 0x7fffffff, 0x7fffffff);  // take_size checks the limit
  png_read_info(png, info);
  const int bits = png_get_bit_depth(png, info);
  if (bits > 8) decoded.refusal = too_deep(bits);
  const auto height = png_get_image_height(png, info), width = png_get_image_width(png, info);
  if (!decoded.refusal.empty() || !take_size(decoded, height, width)) {
    png_destroy_read_struct(&png, &info, nullptr);
    return false;
  }
  // Keep the bytes of the file: no gamma, no color profile and no background is applied.
  const auto color = png_get_color_type(png, info);
  if (color == PNG_COLOR_TYPE_PALETTE) png_set_palette_to_rgb(png);
  if ((color & PNG_COLOR_MASK_COLOR) == 0) {
    if (bits < 8) png_set_expand_gray_1_2_4_to_8(png);
    png_set_gray_to_rgb(png);
  }
  png_set_strip_alpha(png);
  png_set_interlace_handling(png);
  png_read_update_info(png, info);
  const std::size_t row_bytes = static_cast<std::size_t>(width) * 3;
  if (png_get_rowbytes(png, info) != row_bytes) png_error(png, "unexpected channels");
  for (std::size_t row = 0; row < height; ++row) {
    rows.push_back(decoded.image.rgb.data() + row * row_bytes);
  }
  png_read_image(png, rows.data());
  png_read_end(png, info);
  png_bytep exif = nullptr;
  png_uint_32 size = 0;
  if (png_get_eXIf_1(png, info, &size, &exif) != 0) decoded.exif.assign(exif, exif + size);
  png_destroy_read_struct(&png, &info, nullptr);
  return true;
}

// Return the orientation, 1 to 8, that an EXIF block (a TIFF header and its first directory)
// states; 1 if it cannot be read.
int orientation_of(const std::vector<std::uint8_t>& exif) {
  if (exif.size() < 8) return 1;
  const bool is_little = exif[0] == 'I' && exif[1] == 'I';
  if (!is_little && !(exif[0] == 'M' && exif[1] == 'M')) return 1;
  const auto number = [&](std::size_t at, std::size_t bytes) {
    std::size_t value = 0;
    for (std::size_t i = 0; i < bytes; ++i) {
      value = value << 8 | exif[at + (is_little ? bytes - 1 - i : i)];
    }
    return value;
  };
  if (number(2, 2) != 42) return 1;
  const std::size_t folder = number(4, 4);
  if (folder > exif.size() - 2) return 1;
  std::size_t found = 1;
  const std::size_t entries = number(folder, 2);
  for (std::size_t i = 0, at = folder + 2; i < entries && at + 12 <= exif.size(); ++i, at += 12) {
    const std::size_t type = number(at + 2, 2), count = number(at + 4, 4);
    const std::size_t bytes = type == 1   ? 1
                              : type == 3 ? 2
                              : type == 4 ? 4
                                          : 0;  // BYTE, SHORT, LONG
    if (number(at, 2) != kOrientation || bytes == 0 || count == 0) continue;
    // Read the first value. Values of more than 4 bytes in total are stored at an offset.
    const std::size_t place = count * bytes <= 4 ? at + 8 : number(at + 8, 4);
    if (place + count * bytes <= exif.size()) found = number(place, bytes);
  }
  return found >= 1 && found <= 8 ? static_cast<int>(found) : 1;
}

// Return the image rotated upright. Orientations 5 to 8 swap height and width.
RgbImage rotate_upright(RgbImage image, int orientation) {
  if (orientation == 1) return image;
  const bool swaps = orientation >= 5;
  const bool mirrors_rows =
      orientation == 3 || orientation == 4 || orientation == 7 || orientation == 8;
  const bool mirrors_columns =
      orientation == 2 || orientation == 3 || orientation == 6 || orientation == 7;
  RgbImage upright{swaps ? image.width : image.height, swaps ? image.height : image.width,
                   std::vector<std::uint8_t>(image.rgb.size())};
  const auto height = static_cast<std::size_t>(upright.height);
  const auto width = static_cast<std::size_t>(upright.width);
  const auto stride = static_cast<std::size_t>(image.width);
  for (std::size_t y = 0; y < height; ++y) {
    for (std::size_t x = 0; x < width; ++x) {
      const std::size_t row = mirrors_rows ? height - 1 - y : y;
      const std::size_t column = mirrors_columns ? width - 1 - x : x;
      const std::size_t from = swaps ? column * stride + row : row * stride + column;
      std::copy_n(image.rgb.data() + 3 * from, 3, upright.rgb.data() + 3 * (y * width + x));
    }
  }
  return upright;
}

bool is_named(const std::string& path, std::initializer_list<const char*> suffixes) {
  std::string suffix = std::filesystem::path(path).extension().string();
  for (char& one : suffix) one = static_cast<char>(std::tolower(static_cast<unsigned char>(one)));
  return std::find(suffixes.begin(), suffixes.end(), suffix) != suffixes.end();
}

}  // namespace

RgbImage read_image(const std::string& path) {
  check_regular(path);
  const std::unique_ptr<std::FILE, Close> file(std::fopen(path.c_str(), "rb"));
  if (!file) throw Error(path + ": cannot be read (" + std::strerror(errno) + ")");
  unsigned char start[8] = {};
  const auto held = std::fread(start, 1, sizeof start, file.get());
  std::rewind(file.get());
  const bool is_png = held == sizeof start && png_sig_cmp(start, 0, sizeof start) == 0;
  if (!is_png && !(held >= 2 && start[0] == 0xFF && start[1] == 0xD8)) {
    throw Error(path + ": is neither a PNG nor a JPEG image; convert or remove it");
  }
  if (is_png ? is_named(path, {".jpg", ".jpeg"}) : is_named(path, {".png"})) {
    throw Error(path + ": holds " + (is_png ? "PNG" : "JPEG") + " data although its name says " +
                (is_png ? "JPEG" : "PNG") + "; rename or convert it");
  }
  Decoded decoded;
  std::vector<png_bytep> rows;
  if (!(is_png ? decode_png(file.get(), decoded, rows) : decode_jpeg(file.get(), decoded))) {
    throw Error(path + ": " +
                (decoded.refusal.empty()
                     ? "the image is damaged (" + decoded.damage + "); replace or remove it"
                     : decoded.refusal));
  }
  return rotate_upright(std::move(decoded.image), orientation_of(decoded.exif));
}

namespace {

void write_png(const std::string& path, unsigned format, int height, int width,
               const std::uint8_t* pixels) {
  png_image image;
  std::memset(&image, 0, sizeof image);
  image.version = PNG_IMAGE_VERSION;
  image.format = format;
  image.height = static_cast<png_uint_32>(height);
  image.width = static_cast<png_uint_32>(width);
  png_alloc_size_t size = PNG_IMAGE_PNG_SIZE_MAX(image);
  std::string content(size, '\0');
  if (png_image_write_to_memory(&image, content.data(), &size, 0, pixels, 0, nullptr) == 0) {
    throw Error(path + ": cannot be written (" + image.message + ")");
  }
  content.resize(size);
  write_whole(path, content);
}

}  // namespace

void write_labels(const std::string& path, const Labels& labels) {
  write_png(path, PNG_FORMAT_GRAY, labels.height, labels.width, labels.data.data());
}

void write_image(const std::string& path, const RgbImage& image) {
  write_png(path, PNG_FORMAT_RGB, image.height, image.width, image.rgb.data());
}

}  // namespace segdeploy
