"""Asks whether the hub of weights can be reached, before its client would try for a minute."""

import os
import socket

_HUB = ("huggingface.co", 443)
_HUB_SECONDS = 2.0


def offline_if_unreachable() -> None:
    """Switch the hub client to its local files when the hub does not answer: no retry storm."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "HF_ENDPOINT")):
        return
    try:
        socket.create_connection(_HUB, timeout=_HUB_SECONDS).close()
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when the client is imported
        import huggingface_hub.constants

        huggingface_hub.constants.HF_HUB_OFFLINE = True  # where that has been
