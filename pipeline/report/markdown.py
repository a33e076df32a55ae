"""Keeps what is said within a cell of a Markdown table."""


def escaped(text: str) -> str:
    """Return a text that ends no cell, begins no tag and breaks no line."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
