"""Choosing precision on the user's own frames: ranges, INT8, FP16, an mIoU budget that holds."""
