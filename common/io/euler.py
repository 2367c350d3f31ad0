"""RELION Euler angles by scipy, until common.rotations is there."""

from __future__ import annotations

import torch
from scipy.spatial.transform import Rotation
from torch import Tensor


def euler_to_matrix(angles_deg: Tensor) -> Tensor:
    """A of RELION (n, 3, 3) from rot, tilt, psi (n, 3) in degrees."""
    matrices = Rotation.from_euler("ZYZ", angles_deg.double().numpy(), degrees=True).as_matrix()
    return torch.from_numpy(matrices.transpose(0, 2, 1).copy())


def matrix_to_euler(rotations: Tensor) -> Tensor:
    """rot, tilt, psi (n, 3) in degrees from A (n, 3, 3)."""
    matrices = rotations.double().cpu().numpy().transpose(0, 2, 1)
    return torch.from_numpy(Rotation.from_matrix(matrices).as_euler("ZYZ", degrees=True))
