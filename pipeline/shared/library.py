"""Loads transformers, an extra, and keeps it off the terminal."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

from pipeline.errors import LibraryError


def load_library() -> Any:
    """Return the module transformers; raises LibraryError where it is not installed."""
    try:
        import transformers
    except ImportError:
        raise LibraryError(
            "text encoders need transformers, which is not installed: "
            "pip install 'beamclip[shared]'"
        ) from None
    return transformers


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' bars, reports and warnings; what it raises stays."""
    logging: Any = load_library().utils.logging
    level, barred = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if barred:
            logging.enable_progress_bar()
