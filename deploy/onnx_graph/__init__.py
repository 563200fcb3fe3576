"""ONNX files: reading, checking and writing them, and what their layers are."""
