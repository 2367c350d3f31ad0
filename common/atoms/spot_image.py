"""The image model of incoherent imaging: each image is a background plus a scale times a sum of Gaussian atoms.

``expected = background + scale * sum_j height_j G(p - x_j; B_j / (8 pi^2) + blur)``, with the atoms in the view
``R r + shift``; where images are sharp at one depth only, the variance grows by ``(opening * (z_j - focus))^2``. Counts
scatter about it with the variance ``gain * expected + read + (misfit * signal)^2``, the signal being what is above
background.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from common.atoms.spot_rendering import Patches, patch_side, render_spots, spot_patches
from common.data import Focus, ImageStack, Poses
from common.parallel import map_over
from common.rotations import rotation_from_vector

EIGHT_PI2 = 8 * math.pi**2
OWN = 7  # of an image's own parameters, those that are not background: turns (3), shift (2), log scale, blur
_LEAST_VARIANCE = 0.02  # angstrom^2, of a spot


@dataclass(frozen=True)
class SpotParameters:
    """All that is refined, float64.

    positions : (n, 3) angstrom. heights : (n,) sum of an atom's counts at scale 1. b_factors : (n,) angstrom^2, with
    all blur that the images share. rotations : (m, 3, 3). shifts : (m, 2) angstrom. scales : (m,).
    blurs : (m,) angstrom^2, variance beyond the shared one. backgrounds : (m, k) coefficients of `background_basis`.
    focus : where each image is sharp, not refined; None: everywhere.
    """

    positions: Tensor
    heights: Tensor
    b_factors: Tensor
    rotations: Tensor
    shifts: Tensor
    scales: Tensor
    blurs: Tensor
    backgrounds: Tensor
    focus: Focus | None = None

    @property
    def poses(self) -> Poses:
        return Poses(self.rotations, self.shifts)

    def images(self, index: Tensor) -> SpotParameters:
        """The same atoms with the images at ``index`` only."""
        own = ("rotations", "shifts", "scales", "blurs", "backgrounds")
        focus = None if self.focus is None else self.focus[index]
        return replace(self, **{name: getattr(self, name)[index] for name in own}, focus=focus)


@dataclass(frozen=True)
class CountNoise:
    """Variance of a pixel: ``gain * expected + read + (misfit * (expected - background))^2``.

    gain : counts per electron (m,) or (1,). read : counts^2. misfit : relative, what the model leaves out.
    """

    gain: Tensor
    read: Tensor
    misfit: Tensor

    def variance(self, expected: Tensor, signal: Tensor) -> Tensor:
        """(b, d, d) of images with the ``expected`` counts, of them ``signal`` above background."""
        gain, read, misfit = (v.to(expected)[:, None, None] for v in (self.gain, self.read, self.misfit))
        least = 0.02 * gain * expected.mean((-2, -1), keepdim=True).clamp(min=1e-12)
        return (gain * expected + read).clamp(min=least) + (misfit * signal) ** 2

    def images(self, index: Tensor) -> CountNoise:
        return CountNoise(self.gain[index], self.read[index], self.misfit[index])


def background_basis(box_size: int, order: int, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Products of cosines (k, d, d) of x and y up to ``order`` in all, the constant first; k = (o + 1)(o + 2) / 2."""
    t = (torch.arange(box_size, dtype=dtype, device=device) + 0.5) / box_size
    waves = torch.cos(math.pi * torch.arange(order + 1, dtype=dtype, device=device)[:, None] * t)
    pairs = [(total - i, i) for total in range(order + 1) for i in range(total + 1)]
    return torch.stack([waves[i][:, None] * waves[j] for i, j in pairs])


def variances(parameters: SpotParameters, pixel_size: float) -> Tensor:
    """(m, n) pixels^2 of every spot."""
    total = (parameters.b_factors / EIGHT_PI2 + parameters.blurs[:, None]).clamp(min=_LEAST_VARIANCE)
    if parameters.focus is not None:
        total = total + (parameters.focus.opening * out_of_focus(parameters, parameters.focus)) ** 2
    return total / pixel_size**2


def out_of_focus(parameters: SpotParameters, focus: Focus) -> Tensor:
    """(m, n) angstrom from where each image is sharp, along the beam."""
    return parameters.rotations[:, 2] @ parameters.positions.mT - focus.heights[:, None]


def places(parameters: SpotParameters, pixel_size: float) -> Tensor:
    """(m, n, 2) pixels from pixel ``d // 2``."""
    view = parameters.positions @ parameters.rotations[:, :2].mT
    return (view + parameters.shifts[:, None]) / pixel_size


def lay_out(parameters: SpotParameters, stack: ImageStack, reach: float = 4.0) -> Patches:
    """The atoms' patches in all images of ``parameters``."""
    dtype = stack.images.dtype if stack.images.is_floating_point() else torch.float32
    wide = variances(parameters, stack.pixel_size).to(dtype)
    side = patch_side(float(wide.max()), reach)
    return spot_patches(places(parameters, stack.pixel_size), wide, stack.box_size, side)


def signal_of(parameters: SpotParameters, patches: Patches) -> Tensor:
    """Images (m, d, d) without background."""
    amplitude = parameters.scales[:, None] * parameters.heights
    return render_spots(patches, amplitude.to(patches.x.dtype))


def predict(parameters: SpotParameters, stack: ImageStack, *, batch_size: int = 8) -> Tensor:
    """The expected images (m, d, d) of the model; ``stack`` gives box, pixel size and type."""
    batches = image_batches(len(parameters.scales), batch_size, parameters.scales.device)
    return map_over(lambda rows: (compared(parameters, stack, rows).expected,), batches)[0]


class Compared(NamedTuple):
    """expected : (b, d, d) counts. signal : of them above background. images : measured. inside : (d, d) 1 where they
    were, 0 elsewhere."""

    expected: Tensor
    signal: Tensor
    images: Tensor
    inside: Tensor


def compared(parameters: SpotParameters, stack: ImageStack, rows: Tensor) -> Compared:
    """The model of the images at ``rows`` beside what was measured."""
    basis, part = basis_for(parameters, stack), parameters.images(rows)
    signal = signal_of(part, lay_out(part, stack))
    expected = signal + torch.einsum("mk,kyx->myx", part.backgrounds.to(basis), basis)
    return Compared(expected, signal, stack.images[rows].to(basis), stack.inside.to(basis))


def correlations(first: Tensor, second: Tensor) -> Tensor:
    """(k,) of the rows of two (k, p), whatever their means and scales."""
    a, b = first - first.mean(1, keepdim=True), second - second.mean(1, keepdim=True)
    return (a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).sqrt()


def basis_for(parameters: SpotParameters, stack: ImageStack) -> Tensor:
    k = parameters.backgrounds.shape[1]
    order = round((math.sqrt(8 * k + 1) - 3) / 2)
    dtype = stack.images.dtype if stack.images.is_floating_point() else torch.float32
    return background_basis(stack.box_size, order, dtype=dtype, device=stack.images.device)


def image_batches(count: int, batch_size: int, device: torch.device) -> tuple[Tensor, ...]:
    return torch.arange(count, device=device).split(batch_size)


def moved(parameters: SpotParameters, atoms: Tensor, widening: Tensor, own: Tensor) -> SpotParameters:
    """The parameters after a step.

    Parameters
    ----------
    atoms : (n, 4) change of the height and the position.
    widening : (n,) change of the variance, angstrom^2.
    own : (m, 7 + k) of each image: turns about the view's x, y, z (radian), shift (angstrom), log scale, blur
        (angstrom^2), background.
    """
    least = _LEAST_VARIANCE * EIGHT_PI2
    return replace(
        parameters,
        positions=parameters.positions + atoms[:, 1:],
        heights=(parameters.heights + atoms[:, 0]).clamp(min=1e-3 * float(parameters.heights.median())),
        b_factors=(parameters.b_factors + EIGHT_PI2 * widening).clamp(min=least),
        rotations=rotation_from_vector(own[:, :3]) @ parameters.rotations,
        shifts=parameters.shifts + own[:, 3:5],
        scales=parameters.scales * torch.exp(own[:, 5].clamp(-0.5, 0.5)),
        blurs=parameters.blurs + own[:, 6],
        backgrounds=parameters.backgrounds + own[:, OWN:],
    )


def log_likelihood(model: Compared, noise: CountNoise) -> Tensor:
    """(m,) nats of each image up to a constant of the data, float64.

    Poisson counts of ``gain`` with Gaussian noise, as a Poisson variable shifted by its variance [1]_; where the model
    is not exact (``misfit``), a normal density of that variance.

    References
    ----------
    .. [1] Snyder et al., "Image recovery from data acquired with a charge-coupled-device camera", J. Opt. Soc. Am. A
       10, 1014 (1993). doi:10.1364/JOSAA.10.001014
    """
    expected, signal, images, inside = model
    gain, read, misfit = (v.to(expected)[:, None, None] for v in (noise.gain, noise.read, noise.misfit))
    variance = noise.variance(expected, signal)
    if float(misfit.max()) > 0:
        nats = (-((images - expected) ** 2) / variance - torch.log(variance)) / 2
    else:
        rate = variance / gain**2
        nats = (images + read / gain) / gain * torch.log(rate) - rate
    return (nats * inside).double().sum((1, 2))
