"""Resize kernels in numpy, each equal to the library that it is named after.

A network is trained with the arithmetic of one library, and another library's gives other pixels.
Each kernel takes an image `(H, W)` or `(H, W, C)` of any number of channels.
"""
