"""Graphs: a denoiser, or a denoiser and the fused step, captured once for a shape and replayed without Python."""

from fastdiff.graphs.graphed import Graphed, Report, graphed
from fastdiff.graphs.recorder import CannotCapture
from fastdiff.graphs.run import clear

__all__ = ["CannotCapture", "Graphed", "Report", "clear", "graphed"]
