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

typedef struct segdeploy_model segdeploy_model;

enum segdeploy_format {
  SEGDEPLOY_RGB = 0,
  SEGDEPLOY_BGR = 1,
  SEGDEPLOY_RGBA = 2,
  SEGDEPLOY_GRAY = 3
};

/* Opens an .onnx file. `onnxruntime` is the path of ONNX Runtime's library, or null for the default;
 * `threads` those inside an operator, 0 for the runtime's choice. */
segdeploy_model* segdeploy_open(const char* path, const char* onnxruntime, int threads);
void segdeploy_close(segdeploy_model* model);

/* Labels of the picture's own size into `labels`, which holds height * width bytes. `stride` is the
 * distance of two rows in bytes, 0 where they lie one behind the other. Safe from several threads. */
int segdeploy_predict(const segdeploy_model* model, const uint8_t* data, int height, int width,
                      size_t stride, enum segdeploy_format format, uint8_t* labels);

/* How many classes there are, and each one's name: it lives as long as the model. */
int segdeploy_classes(const segdeploy_model* model);
const char* segdeploy_class(const segdeploy_model* model, int id);

/* What failed last in this thread; "" if nothing has. */
const char* segdeploy_error(void);
const char* segdeploy_version(void);

#ifdef __cplusplus
}
#endif

#endif
