"""The mean cross-entropy of a linear classifier and its gradient, some rows at a time.

Shape letters: N rows, F feature dimension, C classes.
"""

import torch

# Numbers of one chunk of logits: on a CPU they stay in its caches, a GPU wants more at once.
_CHUNK_NUMBERS = {"cpu": 1 << 19, "cuda": 1 << 26}
_LEAST_ROWS = 256


def chunk_rows(num_classes: int, device: torch.device) -> int:
    """Return how many rows are taken at a time: memory is this times C, whatever N is."""
    return max(_LEAST_ROWS, _CHUNK_NUMBERS.get(device.type, 1 << 19) // num_classes)


def mean_loss(
    x_NF: torch.Tensor,
    places_N: torch.Tensor,
    weights_CF: torch.Tensor,
    biases_C: torch.Tensor,
    dtype: torch.dtype,
) -> tuple[float, torch.Tensor, torch.Tensor]:
    """Return the mean of -log softmax(x W' + b)[place], its gradient by W [C, F] and by b [C].

    places_N: int64, 0 to C - 1. dtype: of the matrix products and of the softmax; the loss and the
    gradients are summed over chunks in float64, and returned so. No matrix of N rows is made.
    """
    num_classes, rows = len(biases_C), chunk_rows(len(biases_C), x_NF.device)
    into_w_CF = torch.zeros_like(weights_CF, dtype=torch.float64)
    into_b_C = torch.zeros_like(biases_C, dtype=torch.float64)
    loss = into_b_C.new_zeros(())
    transposed_FC, biases_C = weights_CF.to(dtype).T.contiguous(), biases_C.to(dtype)
    scratch = torch.empty((2, min(rows, len(x_NF)), num_classes), dtype=dtype, device=x_NF.device)
    for start in range(0, len(x_NF), rows):
        x, place = x_NF[start : start + rows].to(dtype), places_N[start : start + rows, None]
        logits, share = scratch[:, : len(x)]
        torch.addmm(biases_C, x, transposed_FC, out=logits)
        # -log softmax by its largest share, at least 1 / C: the place's own may underflow.
        short = logits.amax(1) - logits.gather(1, place).squeeze(1)
        torch.softmax(logits, 1, out=share)
        loss += (short.double() - share.amax(1).double().log()).sum()
        share.scatter_add_(1, place, torch.full_like(place, -1, dtype=dtype))
        into_w_CF += share.T @ x
        into_b_C += share.sum(0)
    count = len(x_NF)
    return float(loss) / count, into_w_CF / count, into_b_C / count
