"""Exported LaViT models at work: an image in, classes, boxes or masks out. Needs NumPy, OpenCV and one runtime.

from mmlavit_serve import Predictor
result = Predictor('model.onnx').predict('image.jpg')
print(result.to_json())
"""

from .errors import UserError
from .predictor import Predictor
from .results import Classification, Detections, Result, Segmentation

__all__ = ['Classification', 'Detections', 'Predictor', 'Result', 'Segmentation', 'UserError']
