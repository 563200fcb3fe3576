"""Preprocessing in numpy: an image is fitted, resized and normalized as the contract says."""
