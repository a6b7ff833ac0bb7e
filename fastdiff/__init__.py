"""fastdiff makes diffusion sampling fast without changing the pictures."""

__version__ = "0.1.0"
