"""One `Session` protocol over every runtime, and the `Predictor` on top of it."""
