"""TensorRT engines: building, proving and describing them."""
