/* The C interface of the segdeploy C++ library, for use from other languages.
 *
 * No exception leaves this interface. A function that fails returns a null pointer or a number
 * other than 0. segdeploy_error() then returns the calling thread's message: what is wrong, where,
 * and how to fix it.
 */
#ifndef SEGDEPLOY_C_H
#define SEGDEPLOY_C_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

typedef struct segdeploy_model segdeploy_model;

enum segdeploy_format {
  SEGDEPLOY_RGB = 0,
  SEGDEPLOY_BGR = 1,
  SEGDEPLOY_RGBA = 2,
  SEGDEPLOY_GRAY = 3
};

/* Options for opening a file. Zero and null select the defaults. `library` is the path of the
 * runtime library (ONNX Runtime or TensorRT). `provider` is the execution provider for an .onnx
 * file (cpu, cuda or tensorrt). */
typedef struct segdeploy_options {
  const char* library;
  const char* provider;
  int threads;
  int contexts;
} segdeploy_options;

/* Open an .onnx file or an engine. `options` may be null. */
segdeploy_model* segdeploy_open(const char* path, const segdeploy_options* options);
void segdeploy_close(segdeploy_model* model);

/* Write labels at the image's own size into `labels`, which holds height * width bytes. `stride` is
 * the distance between the starts of two rows in bytes; 0 means that the rows are contiguous. May
 * be called from several threads. */
int segdeploy_predict(const segdeploy_model* model, const uint8_t* data, int height, int width,
                      size_t stride, enum segdeploy_format format, uint8_t* labels);

/* Run an engine on device memory, on the caller's stream, as Model::enqueue does. */
int segdeploy_enqueue(const segdeploy_model* model, const void* input, void* output, void* stream);

/* Return the number of classes, and the name of a class. The name lives as long as the model. */
int segdeploy_classes(const segdeploy_model* model);
const char* segdeploy_class(const segdeploy_model* model, int id);
/* Return the height and the width of the network's input, in pixels. */
int segdeploy_height(const segdeploy_model* model);
int segdeploy_width(const segdeploy_model* model);

/* Preprocessing and postprocessing without a network, for a host with its own runtime. */

/* A contract, parsed from the entry segdeploy.contract of an ONNX file's metadata. Only one thread
 * may use a contract at a time. */
typedef struct segdeploy_contract segdeploy_contract;
segdeploy_contract* segdeploy_contract_open(const char* json);
void segdeploy_contract_close(segdeploy_contract* contract);

/* Write the network's input for an RGB image (height, width) with contiguous rows. The input has
 * the contract's size: float (1, 3, H, W), or bytes (1, H, W, 3) if the contract says so. */
int segdeploy_prepare(segdeploy_contract* contract, const uint8_t* rgb, int height, int width,
                      void* input);

/* Write the labels (height, width) of one image's scores (classes, map_height, map_width): upsample
 * the scores bilinearly, then take the best class. If the contract leaves upsampling to the host
 * (low-resolution logits), the labels are computed at the contract's size, then resized to the
 * image's size by nearest neighbor. */
int segdeploy_label(segdeploy_contract* contract, const float* scores, int map_height,
                    int map_width, int height, int width, uint8_t* labels);

/* Return the calling thread's last error message, or "" if nothing has failed. */
const char* segdeploy_error(void);
const char* segdeploy_version(void);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif

#endif
