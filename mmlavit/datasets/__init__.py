"""Datasets that are made on the spot, without a download."""

from .handwritten import HandwrittenConfig, Summary, generate

__all__ = ['HandwrittenConfig', 'Summary', 'generate']
