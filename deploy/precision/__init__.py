"""Precision selection on the user's own frames: ranges, INT8, FP16, and an mIoU budget."""
