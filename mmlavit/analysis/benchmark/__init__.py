"""Backbones measured side by side; ``tools/analysis_tools/benchmark.py`` is the command."""
