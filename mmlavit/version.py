"""The version, stated here only; setup.py reads it without importing the package."""

__version__ = '0.1.0'
