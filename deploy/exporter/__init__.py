"""Export from PyTorch to ONNX, with the proofs that the graph is still the same network."""
