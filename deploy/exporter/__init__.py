"""From PyTorch to ONNX, with the proofs that it is still the same network."""
