#include "pictures.hpp"

#include <png.h>

#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <memory>

// libjpeg's header needs <cstdio> before it.
#include <jpeglib.h>

namespace segdeploy {
namespace {

struct Close {
  void operator()(std::FILE* file) const { std::fclose(file); }
};

struct JpegError {
  jpeg_error_mgr manager;
  std::jmp_buf back;
  char message[JMSG_LENGTH_MAX];
};

void leave(j_common_ptr info) {
  auto* error = reinterpret_cast<JpegError*>(info->err);
  info->err->format_message(info, error->message);
  std::longjmp(error->back, 1);
}

// A warning is of damaged data, which libjpeg fills with grey: no picture to judge anything by.
void warn(j_common_ptr info, int level) {
  if (level < 0) leave(info);
}

// No object with a destructor may live across the jump: the caller owns them all.
bool decode_jpeg(std::FILE* file, Picture& picture, JpegError& error) {
  jpeg_decompress_struct info;
  info.err = jpeg_std_error(&error.manager);
  error.manager.error_exit = leave;
  error.manager.emit_message = warn;
  if (setjmp(error.back) != 0) {
    jpeg_destroy_decompress(&info);
    return false;
  }
  jpeg_create_decompress(&info);
  jpeg_stdio_src(&info, file);
  jpeg_read_header(&info, TRUE);
  info.out_color_space = JCS_RGB;
  jpeg_start_decompress(&info);
  picture.height = static_cast<int>(info.output_height);
  picture.width = static_cast<int>(info.output_width);
  picture.rgb.resize(static_cast<std::size_t>(info.output_height) * info.output_width * 3);
  while (info.output_scanline < info.output_height) {
    JSAMPROW row =
        picture.rgb.data() + static_cast<std::size_t>(info.output_scanline) * info.output_width * 3;
    jpeg_read_scanlines(&info, &row, 1);
  }
  jpeg_finish_decompress(&info);
  jpeg_destroy_decompress(&info);
  return true;
}

Picture read_png(const std::string& path) {
  png_image image;
  std::memset(&image, 0, sizeof image);
  image.version = PNG_IMAGE_VERSION;
  if (png_image_begin_read_from_file(&image, path.c_str()) == 0) {
    throw Error(path + ": cannot be read as PNG (" + image.message + ")");
  }
  image.format = PNG_FORMAT_RGB;
  Picture picture{static_cast<int>(image.height), static_cast<int>(image.width), {}};
  picture.rgb.resize(PNG_IMAGE_SIZE(image));
  if (png_image_finish_read(&image, nullptr, picture.rgb.data(), 0, nullptr) == 0) {
    throw Error(path + ": cannot be read as PNG (" + image.message + ")");
  }
  return picture;
}

}  // namespace

Picture read_picture(const std::string& path) {
  const std::unique_ptr<std::FILE, Close> file(std::fopen(path.c_str(), "rb"));
  if (!file) throw Error(path + ": no such file");
  unsigned char start[2] = {};
  const auto held = std::fread(start, 1, sizeof start, file.get());
  std::rewind(file.get());
  if (held == 2 && start[0] == 0x89 && start[1] == 'P') return read_png(path);
  if (held != 2 || start[0] != 0xFF || start[1] != 0xD8) {
    throw Error(path + ": is neither a PNG nor a JPEG");
  }
  Picture picture;
  JpegError error{};
  if (!decode_jpeg(file.get(), picture, error)) {
    throw Error(path + ": cannot be read as JPEG (" + error.message + ")");
  }
  return picture;
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
  if (png_image_write_to_file(&image, path.c_str(), 0, pixels, 0, nullptr) == 0) {
    throw Error(path + ": cannot be written (" + image.message + ")");
  }
}

}  // namespace

void write_labels(const std::string& path, const Labels& labels) {
  write_png(path, PNG_FORMAT_GRAY, labels.height, labels.width, labels.data.data());
}

void write_picture(const std::string& path, const Picture& picture) {
  write_png(path, PNG_FORMAT_RGB, picture.height, picture.width, picture.rgb.data());
}

}  // namespace segdeploy
