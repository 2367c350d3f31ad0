"""RELION's Euler angles as Heymann et al. (2005) define them, through scipy: A is the transpose of intrinsic ZYZ."""

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from common.rotations import euler_to_matrix


def test_matrices_agree_with_scipy():
    random = np.random.default_rng(0)
    angles = random.uniform((-180, 0, -180), (180, 180, 180), (200, 3))
    expected = Rotation.from_euler("ZYZ", angles, degrees=True).as_matrix().transpose(0, 2, 1)
    assert np.allclose(euler_to_matrix(torch.from_numpy(angles)).numpy(), expected, atol=1e-14)


def test_tilt_of_ninety_brings_the_specimen_x_axis_onto_the_beam():
    view = euler_to_matrix(torch.tensor([0.0, 90.0, 0.0]).double()) @ torch.tensor([1.0, 0.0, 0.0]).double()
    assert torch.allclose(view, torch.tensor([0.0, 0.0, 1.0]).double())
