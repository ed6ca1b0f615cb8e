"""Exported LaViT models at work: an image in, classes, boxes or masks out. Needs NumPy, OpenCV and one runtime.

from mmlavit_serve import Predictor
result = Predictor('model.onnx').predict('image.jpg')
print(result.to_json())
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import UserError

if TYPE_CHECKING:
    from .predictor import Predictor
    from .results import Classification, Detections, Result, Segmentation

__all__ = ['Classification', 'Detections', 'Predictor', 'Result', 'Segmentation', 'UserError']


def __getattr__(name: str) -> Any:
    """Import the rest when it is asked for: the errors alone need neither NumPy nor OpenCV."""
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module('.predictor' if name == 'Predictor' else '.results', __name__), name)
