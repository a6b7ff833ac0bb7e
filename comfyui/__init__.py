"""fastdiff in ComfyUI: copy or link this folder into ComfyUI/custom_nodes (docs/comfyui.md)."""

from __future__ import annotations

try:
    import fastdiff  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError(
        "fastdiff is not installed in the Python that runs ComfyUI: pip install . in its checkout"
    ) from error

from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
