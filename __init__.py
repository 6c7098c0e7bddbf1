"""Trimtab: agents on small, steered, proven models."""

__version__ = "0.1.0"
