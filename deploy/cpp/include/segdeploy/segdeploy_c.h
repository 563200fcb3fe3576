/* segdeploy for other languages: the C++ library behind a C interface.
 *
 * No exception leaves it. A function that fails returns a null pointer or a number other than 0, and
 * segdeploy_error() says, for the calling thread, what, where and how to mend it.
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

/* How to open a file; zero and null are the defaults. `library` is the path of the runtime's library,
 * ONNX Runtime's or TensorRT's; `provider` who runs an .onnx (cpu, cuda, tensorrt). */
typedef struct segdeploy_options {
  const char* library;
  const char* provider;
  int threads;
  int contexts;
} segdeploy_options;

/* Opens an .onnx file or an engine. `options` may be null. */
segdeploy_model* segdeploy_open(const char* path, const segdeploy_options* options);
void segdeploy_close(segdeploy_model* model);

/* Labels of the picture's own size into `labels`, which holds height * width bytes. `stride` is the
 * distance of two rows in bytes, 0 where they lie one behind the other. Safe from several threads. */
int segdeploy_predict(const segdeploy_model* model, const uint8_t* data, int height, int width,
                      size_t stride, enum segdeploy_format format, uint8_t* labels);

/* Runs an engine between device memory, on the caller's stream: as Model::enqueue. */
int segdeploy_enqueue(const segdeploy_model* model, const void* input, void* output, void* stream);

/* How many classes there are, and each one's name: it lives as long as the model. */
int segdeploy_classes(const segdeploy_model* model);
const char* segdeploy_class(const segdeploy_model* model, int id);
/* Size of the network's input. */
int segdeploy_height(const segdeploy_model* model);
int segdeploy_width(const segdeploy_model* model);

/* Pre- and postprocessing without a network, for a host that has a runtime of its own. */

/* A contract, as it stands in an ONNX file's metadata (segdeploy.contract). One thread's at a time. */
typedef struct segdeploy_contract segdeploy_contract;
segdeploy_contract* segdeploy_contract_open(const char* json);
void segdeploy_contract_close(segdeploy_contract* contract);

/* The network's input for a picture of RGB rows without gaps: height x width of the contract, as
 * float (1, 3, H, W), or as bytes (1, H, W, 3) where the contract says so. */
int segdeploy_prepare(segdeploy_contract* contract, const uint8_t* rgb, int height, int width,
                      void* input);

/* Labels (height, width) of the scores (classes, map_height, map_width) of one picture: upsampled
 * bilinearly, then the best class. Of a contract that leaves upsampling to the host (a small map),
 * the labels are made at the contract's size, and taken to the picture's by nearest neighbour. */
int segdeploy_label(segdeploy_contract* contract, const float* scores, int map_height,
                    int map_width, int height, int width, uint8_t* labels);

/* What failed last in this thread; "" if nothing has. */
const char* segdeploy_error(void);
const char* segdeploy_version(void);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif

#endif
