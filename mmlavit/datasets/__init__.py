"""Data sets that are made on the spot, without a download."""

from .handwritten import HandwrittenConfig, Summary, generate
from .handwritten_drawing import DatasetError

__all__ = ['DatasetError', 'HandwrittenConfig', 'Summary', 'generate']
