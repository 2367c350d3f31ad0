"""Linear least squares whose last bits do not change from run to run."""

from __future__ import annotations

import torch
from torch import Tensor


def least_squares(design: Tensor, values: Tensor) -> Tensor:
    """The x (..., q, k) of least ``|design @ x - values|``, from (..., p, q) and (..., p, k).

    PyTorch's own choice on a CPU (gelsy) begins from pivots in memory that nobody has set, and a GPU knows only gels,
    which wants full rank.
    """
    return torch.linalg.lstsq(design, values, driver="gels" if design.is_cuda else "gelsd").solution
