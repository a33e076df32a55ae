"""Turn a large frozen teacher into a small student, offline, once."""

__version__ = "0.1.0"
