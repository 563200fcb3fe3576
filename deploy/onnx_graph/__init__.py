"""Read, check and write ONNX files, and describe their layers."""
