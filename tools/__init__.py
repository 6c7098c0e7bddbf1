"""Tools: typed functions a model may call, and the ones that come built in."""

from ..errors import ToolFailure
from .tool import Tool, ToolResult, tool
from .toolset import Toolset

__all__ = ["Tool", "ToolFailure", "ToolResult", "Toolset", "tool"]
