"""The projector of images of a converged probe, sharp at one depth only, and its exact adjoint.

What lies a distance z off the focus is blurred by ``H(k, z) = exp(-2 (pi k opening z)^2)``. As a sum of a few cosines
of z, ``H`` makes an image's transform a sum over planes of the volume's transform beside the central one, which carry
what through-focal images know and projections do not [1]_.

References
----------
.. [1] R. Hovden et al., "Breaking the Crowther limit: combining depth-sectioning and tilt tomography for
   high-resolution, wide-field 3D reconstructions", Ultramicroscopy 140, 26 (2014). doi:10.1016/j.ultramic.2014.01.013
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from aet_tilt.reconstruction.operator import is_single_axis
from aet_tilt.reconstruction.tilt_operator import TiltOperator, block_of, row_blocks, tilt_operator
from common.data import Focus, InputError, Poses
from common.parallel import map_over

_ROOM = 1.5  # period of the cosines, in units of the depths they stand for: they need not go on smoothly beyond
_DEPTHS = 256  # at which the cosines are fitted
_NOISE = 1e-3  # relative, of combinations of cosines that are left out
_REACH = 3.5  # widths of the blur's transform along the beam


@dataclass(frozen=True)
class FocusedOperator:
    """Tilts about y with depth of field.

    tilt : samples n images at p frequencies along the beam in turn. focus : of the images.
    mix : (p, k, d) the share of each plane, by the frequencies along x and y.
    phases : (n, p) of the images' focus.
    """

    tilt: TiltOperator
    focus: Focus
    mix: Tensor
    phases: Tensor

    @property
    def poses(self) -> Poses:
        return self.tilt.poses

    @property
    def box_size(self) -> int:
        return self.tilt.box_size

    @property
    def pixel_size(self) -> float:
        return self.tilt.pixel_size

    def __len__(self) -> int:
        return len(self.tilt)

    def project(self, values: Tensor) -> Tensor:
        """(n, d, d) from (d, d, d)."""
        blocks = row_blocks(values.shape[1])
        (parts,) = map_over(lambda rows: (torch.view_as_real(self.tilt.sample(block_of(values, rows))),), blocks, dim=2)
        planes = torch.view_as_complex(parts.contiguous()).unflatten(1, self.mix.shape[:2])
        spectra = torch.einsum("npkd,pkd,np->nkd", torch.fft.fft(planes, dim=-1), self.mix, self.phases)
        return self.tilt.shift_y(self.tilt.rows_of(torch.fft.ifft(spectra, dim=-1)), self.tilt.along_y)

    def backproject(self, images: Tensor) -> Tensor:
        """(d, d, d) from (n, d, d)."""
        rows = self.tilt.shift_y(images, self.tilt.along_y.conj())
        spectra = torch.fft.fft(self.tilt.spectra_of(rows), dim=-1)
        planes = torch.einsum("nkd,pkd,np->npkd", spectra, self.mix, self.phases.conj())
        samples = torch.fft.ifft(planes, dim=-1).flatten(1, 2)
        blocks = row_blocks(samples.shape[-1])
        (values,) = map_over(
            lambda rows: (self.tilt.spread(samples[..., int(rows[0]) : int(rows[-1]) + 1]),), blocks, dim=1
        )
        return values

    def subset(self, index: Tensor) -> FocusedOperator:
        """The same for some of the poses."""
        return focused_operator(self.poses[index], self.box_size, self.pixel_size, self.focus[index])


def focused_operator(poses: Poses, box_size: int, pixel_size: float, focus: Focus) -> FocusedOperator:
    """The projector of through-focal images; parameters as for `operator.make_operator`.

    Raises
    ------
    InputError : the poses are no tilts about one axis.
    """
    if not is_single_axis(poses):
        raise InputError(
            "depth of field needs tilts about one axis, expected --alignment.angle-sigma 0 and tilt angles"
        )
    kind, device = poses.rotations.dtype, poses.rotations.device
    deepest = math.sqrt(0.5) * box_size * pixel_size + float(focus.heights.abs().max())
    period = 2 * _ROOM * deepest
    finest = math.sqrt(0.5) / pixel_size
    count = max(4, math.ceil(_REACH * finest * focus.opening * period))
    orders = torch.arange(-count, count + 1, device=device)
    tilt = tilt_operator(poses, box_size, pixel_size, tuple((orders.double() * pixel_size / period).tolist()))
    k_x = torch.arange(tilt.along_x.shape[1], dtype=torch.float64, device=device) / tilt.padded_size
    k_y = torch.fft.fftfreq(box_size, dtype=torch.float64, device=device)
    frequency = (k_x[:, None].square() + k_y.square()).sqrt() / pixel_size
    share = cosine_series(frequency.flatten(), focus.opening, deepest, count, period).view(-1, *frequency.shape)
    # the plane at frequency q along the beam holds the integral of exp(-2 pi i q z) times the matter
    turns = 2 * math.pi / period * orders * focus.heights.double()[:, None]
    phases = torch.polar(torch.ones_like(turns), turns).to(kind.to_complex())
    return FocusedOperator(tilt, focus, share[orders.abs()].to(kind), phases)


def cosine_series(frequency: Tensor, opening: float, deepest: float, count: int, period: float) -> Tensor:
    """Coefficients c (count + 1, f) so that ``c_0 + 2 sum_m c_m cos(2 pi m z / period)`` is the blur's transfer at
    ``|z| <= deepest``, by least squares."""
    z = torch.linspace(0, deepest, _DEPTHS, dtype=torch.float64, device=frequency.device)
    waves = torch.cos(2 * math.pi / period * z[:, None] * torch.arange(count + 1, device=frequency.device))
    waves[:, 1:] *= 2
    transfer = torch.exp(-2 * (math.pi * opening * z[:, None] * frequency) ** 2)
    return torch.linalg.pinv(waves, rtol=_NOISE) @ transfer
