"""Triton kernels, one file an operation; installed as fastdiff.kernels.

Importing this package imports neither Triton nor CUDA; its modules import Triton, so only the backend table loads them.
Kernels take what fastdiff/ops has checked: tensors of one device and dtype, dense in one layout.
"""
