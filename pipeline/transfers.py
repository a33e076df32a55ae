"""Moves arrays and tensors to a device and back, so that neither it nor the CPU waits for long."""

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor


def sent(array: np.ndarray, device: torch.device) -> Tensor:
    """Return an array as a tensor on the device; a GPU need not finish what it is doing first."""
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class Arriving:
    """A tensor on its way to the CPU; it does not wait for what its device is told to do after."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor.to("cpu", non_blocking=True)
        self._event: torch.cuda.Event | None = None
        if tensor.is_cuda:
            self._event = torch.cuda.current_stream(tensor.device).record_event()

    def wait(self) -> Tensor:
        """Return the tensor on the CPU, when it is there."""
        if self._event is not None:
            self._event.synchronize()
        return self._tensor


class Bringing:
    """Brings batches from locked memory to a GPU while it computes what it was told before."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, tensor: Tensor) -> Tensor:
        """Return a tensor on the device; its memory on the CPU is read until that is used."""
        if self._stream is None:
            return tensor.to(self._device)
        with torch.cuda.stream(self._stream):
            brought = tensor.to(self._device, non_blocking=True)
        computing = torch.cuda.current_stream(self._device)
        computing.wait_stream(self._stream)
        brought.record_stream(computing)
        return brought


@contextlib.contextmanager
def page_locked(memory: Tensor, device: torch.device) -> Iterator[None]:
    """Lock a tensor's memory while the block runs, so that a GPU copies from it by itself.

    Does nothing for a CPU, nor where the system does not allow it: copies are slower then.
    """
    if device.type != "cuda":
        yield
        return
    storage = memory.untyped_storage()
    cuda = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    locked = int(cuda.cudaHostRegister(storage.data_ptr(), storage.nbytes(), 0)) == 0
    try:
        yield
    finally:
        if locked:
            torch.cuda.synchronize(device)
            cuda.cudaHostUnregister(storage.data_ptr())
