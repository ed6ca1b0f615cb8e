"""Tools in this process, which has imported the toolboxes already."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

TOOLS = Path(__file__).parents[1] / 'tools'


def call_tool(monkeypatch, tool: str, *args) -> None:
    """Run a tool, named by its path under ``tools``; it may end in a ``SystemExit``."""
    monkeypatch.setattr(sys, 'argv', [Path(tool).name, *map(str, args)])
    runpy.run_path(str(TOOLS / tool), run_name='__main__')


def run_tool(monkeypatch, tool: str, *args) -> int | str:
    """Run a tool as well; give its exit code."""
    try:
        call_tool(monkeypatch, tool, *args)
    except SystemExit as stop:
        return stop.code
    return 0
