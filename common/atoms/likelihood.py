"""The log-likelihood of whitened images given atoms and poses, linearised image by image.

Every image has seven parameters of its own: a rotation (3, a vector in the frame of the view, degrees' worth in radian), a
shift (2, angstrom), the log of its gain and its defocus offset (angstrom). They are eliminated from the atoms' normal
equations image by image (Schur complement): the atoms only ever see the residual that no change of the image's own
parameters can explain.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from common.atoms.image_model import (
    Band,
    Lens,
    Profiles,
    Wave,
    expose,
    fourier_band,
    lens,
    lens_tangents,
    profiles,
    render,
    tangent,
)
from common.data import ImageStack, Optics
from common.noise import NoiseModel, whiten
from common.rotations import rotation_from_vector

OWN = 7  # parameters of each image: rotation (3), shift (2), log gain, defocus


@dataclass(frozen=True)
class Parameters:
    """Everything that is refined, float64.

    positions : (n, 3) angstrom. heights : (n,) integral over the plane: radian angstrom^2, or intensity angstrom^2.
    b_factors : (n,) angstrom^2, on top of the shared shape.
    widths : (c,) angstrom, standard deviations of the Gaussians of the atoms' shape. fractions : (c,) sum to 1.
    focal_spread, defocus_shift : () angstrom, shared by all images. contrast : () log of a shared factor.
    rotations : (m, 3, 3). shifts : (m, 2) angstrom. gains : (m,) logs. defocus : (m,) angstrom, offset of each image.
    """

    positions: Tensor
    heights: Tensor
    b_factors: Tensor
    widths: Tensor
    fractions: Tensor
    focal_spread: Tensor
    defocus_shift: Tensor
    contrast: Tensor
    rotations: Tensor
    shifts: Tensor
    gains: Tensor
    defocus: Tensor


@dataclass(frozen=True)
class Views:
    """Own parameters of some images, or of several candidate poses of each."""

    rotations: Tensor
    shifts: Tensor
    gains: Tensor
    defocus: Tensor

    def __getitem__(self, index: Tensor | slice) -> Views:
        return Views(*(getattr(self, f.name)[index] for f in fields(self)))

    def __len__(self) -> int:
        return len(self.gains)


def views_of(parameters: Parameters) -> Views:
    return Views(parameters.rotations, parameters.shifts, parameters.gains, parameters.defocus)


@dataclass(frozen=True)
class Measurement:
    """Whitened images cut around their particles, as coefficients in a band.

    spectra : (m, f) complex; unit variance of noise. power : (m,) sum of squares of all coefficients of the band.
    level : (m,) what a model image that is 0 in vacuum is multiplied by (vacuum level over noise scale).
    origins : (m, 2) place of the cut's centre relative to the box's, angstrom, (x, y).
    optics : of each image; None for plain projections. band : which coefficients.
    vacuum_known : the level is that of the vacuum; else the images came without one, and the contrast must be found.
    """

    spectra: Tensor
    power: Tensor
    level: Tensor
    origins: Tensor
    optics: Optics | None
    band: Band
    vacuum_known: bool = True

    def __getitem__(self, index: Tensor) -> Measurement:
        optics = None if self.optics is None else self.optics[index]
        return replace(
            self,
            spectra=self.spectra[index],
            power=self.power[index],
            level=self.level[index],
            origins=self.origins[index],
            optics=optics,
        )

    def __len__(self) -> int:
        return len(self.level)


def measure(
    stack: ImageStack, noise: NoiseModel, centres: Tensor, *, side: int, limits: list[float], margin: float = 3.0
) -> list[Measurement]:
    """Whiten, cut a square of ``side`` pixels around each particle, and take its coefficients up to each of ``limits``.

    Parameters
    ----------
    stack, noise : raw images and their noise.
    centres : (m, 2) where each particle is, angstrom from the box's centre; rounded to whole pixels.
    side : pixels, at most the box.
    limits : 1/angstrom.
    """
    white = whiten(stack, noise).images
    m, d = white.shape[0], white.shape[-1]
    reach = (d - side) // 2
    moved = torch.round(centres.to(white.device) / stack.pixel_size).clamp(-reach, reach).long()
    axis = torch.arange(side, device=white.device) + d // 2 - side // 2
    rows, columns = axis + moved[:, 1:2], axis + moved[:, 0:1]
    cut = white[torch.arange(m, device=white.device)[:, None, None], rows[:, :, None], columns[:, None, :]]
    spread = math.sqrt(float(noise.shell_power.mean()))
    # images normalised to a border of zero have lost their vacuum level
    vacuum_known = stack.optics is None or float(noise.mean.min()) > 0.1 * spread
    vacuum = noise.mean if stack.optics is not None and vacuum_known else torch.ones_like(noise.mean)
    level = (vacuum / noise.scale).to(white)
    optics = None if stack.optics is None else _as_type(stack.optics, white)
    frequencies = torch.arange(len(noise.shell_power), device=white.device).float() / (d * stack.pixel_size)
    spectra = torch.fft.rfft2(cut, norm="ortho")
    whitening = noise.shell_power.to(white.device).float().rsqrt()
    found = []
    for limit in limits:
        room = math.inf if optics is None else margin
        band = fourier_band(side, stack.pixel_size, limit, whitening, frequencies, margin=room)
        kept = spectra[:, _column(band, side)[0], _column(band, side)[1]] / band.halved.sqrt() * 1.0
        power = (kept.real**2 + kept.imag**2).double().sum(1)
        found.append(Measurement(kept, power, level, (moved * stack.pixel_size).to(white), optics, band, vacuum_known))
    return found


def _column(band: Band, side: int) -> tuple[Tensor, Tensor]:
    """Rows and columns of the band's coefficients in ``rfft2`` of the whole cut."""
    unit = side * band.pixel_size
    return torch.round(band.ky * unit).long() % side, torch.round(band.kx * unit).long()


def _as_type(optics: Optics, like: Tensor) -> Optics:
    return Optics(**{f.name: getattr(optics, f.name).to(like) for f in fields(optics)})


def batches(n: int, batch_size: int, device: torch.device | str = "cpu") -> Iterator[Tensor]:
    for start in range(0, n, batch_size):
        yield torch.arange(start, min(n, start + batch_size), device=device)


def gaussians(parameters: Parameters, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weight and variance (n x c,) of every Gaussian of every atom."""
    weights = parameters.heights[:, None] * parameters.fractions
    variance = parameters.widths**2 + parameters.b_factors[:, None] / (8 * math.pi**2)
    return weights.flatten().to(dtype), variance.flatten().to(dtype)


@dataclass(frozen=True)
class Exposure:
    """A batch of model images and what their derivatives need.

    placed : (b, k, 3) Gaussians' centres relative to the particle's origin in the view. model : (b, f) coefficients.
    """

    placed: Tensor
    rotations: Tensor
    drawn: Profiles
    weights: Tensor
    wave: Wave | None
    model: Tensor
    gain: Tensor


def lens_of(optics: Optics | None, parameters: Parameters, views: Views, band: Band) -> Lens | None:
    """The lens with the refined focal spread and defocus; ``optics`` has one row per view."""
    if optics is None:
        return None
    moved = (views.defocus + parameters.defocus_shift).to(optics.defocus)
    defocus = torch.cat((optics.defocus[:, :2] + moved[:, None], optics.defocus[:, 2:]), 1)
    spread = torch.full_like(optics.focal_spread, float(parameters.focal_spread))
    return lens(replace(optics, defocus=defocus, focal_spread=spread), band)


def expose_views(parameters: Parameters, views: Views, data: Measurement) -> Exposure:
    """Model coefficients of each row of ``data`` (one per view)."""
    band = data.band
    dtype = band.scale.dtype
    weights, variance = gaussians(parameters, dtype)
    rotations = views.rotations.to(dtype)
    components = len(parameters.widths)
    placed = parameters.positions.to(dtype) @ rotations.mT  # (b, n, 3)
    centres = placed[..., :2] + (views.shifts.to(dtype) - data.origins)[:, None]
    if components > 1:
        placed, centres = (x.repeat_interleave(components, 1) for x in (placed, centres))
    drawn = profiles(centres, variance, band.coordinates)
    optics = lens_of(data.optics, parameters, views, band)
    model, wave = expose(render(drawn.by, drawn.bx, weights), optics, band)
    gain = torch.exp(views.gains + parameters.contrast).to(dtype) * data.level
    return Exposure(placed, rotations, drawn, weights, wave, model * gain[:, None], gain)


def own_columns(exposure: Exposure, data: Measurement) -> Tensor:
    """Derivatives (b, 8, f) of the model by each image's own parameters, and by the log of the focal spread.

    Without optics the last two columns are zero.
    """
    drawn, w, band = exposure.drawn, exposure.weights, data.band
    x, y, z = exposure.placed.unbind(-1)
    slope_x, slope_y = drawn.bx * drawn.ux, drawn.by * drawn.uy
    tilt_x = render(slope_y, drawn.bx, -w * z)
    tilt_y = render(drawn.by, slope_x, w * z)
    turn = render(torch.cat((slope_y, drawn.by), 1), torch.cat((drawn.bx, slope_x), 1), torch.cat((w * x, -w * y), 1))
    turned = tangent(exposure.wave, torch.stack((tilt_x, tilt_y, turn), 1), band) * exposure.gain[:, None, None]
    step = -2j * math.pi * exposure.model
    moved = torch.stack((step * band.kx, step * band.ky, exposure.model), 1)
    if exposure.wave is None:
        return torch.cat((turned, moved, torch.zeros_like(moved[:, :2])), 1)
    focus = lens_tangents(exposure.wave, band) * exposure.gain[:, None, None]
    return torch.cat((turned, moved, focus), 1)


@dataclass(frozen=True)
class Priors:
    """Standard deviations of the images' own gain (log) and defocus offset (angstrom)."""

    gain: float = 0.05
    defocus: float = 20.0

    def precision(self, like: Tensor) -> Tensor:
        """(7,) diagonal; zero where nothing is known."""
        return like.new_tensor([0.0] * 5 + [self.gain**-2, self.defocus**-2])


@dataclass(frozen=True)
class Normal:
    """The normal equations of each image's own parameters.

    objective : (b,) half the sum of squares plus priors, float64. matrix : (b, 7, 7). slope : (b, 7) gradient.
    residual : (b, f) model minus data. columns : (b, 8, f), `own_columns`.
    """

    objective: Tensor
    matrix: Tensor
    slope: Tensor
    residual: Tensor
    columns: Tensor


def real_form(values: Tensor) -> Tensor:
    """(..., f) complex as (..., 2 f) real, so that inner products are sums over pixels."""
    return torch.view_as_real(values).flatten(-2)


def normal_equations(exposure: Exposure, views: Views, data: Measurement, priors: Priors) -> Normal:
    residual = exposure.model - data.spectra
    columns = own_columns(exposure, data)
    flat, rest = real_form(columns[:, :OWN]), real_form(residual)
    own = torch.stack((views.gains, views.defocus), 1)
    precision = priors.precision(own)
    matrix = (flat @ flat.mT).double() + torch.diag(precision)
    slope = (flat @ rest[..., None])[..., 0].double()
    slope[:, 5:] += own * precision[5:]
    half = (rest.double() ** 2).sum(1) / 2 + (own**2 * precision[5:]).sum(1) / 2
    return Normal(half, matrix, slope, residual, columns)


# largest step of an image's own parameters: radian, angstrom, log, angstrom
LARGEST_STEP = (0.08, 0.08, 0.08, 0.3, 0.3, 0.3, 30.0)


def own_step(normal: Normal, damping: Tensor) -> Tensor:
    """Levenberg-Marquardt step (b, 7), limited in length; a column of zeros stays where it is."""
    diagonal = torch.diagonal(normal.matrix, dim1=-2, dim2=-1)
    floor = diagonal.amax(1, keepdim=True) * 1e-12 + 1e-30
    matrix = normal.matrix + torch.diag_embed(diagonal * damping[:, None] + floor)
    step = -torch.linalg.solve(matrix, normal.slope)
    limit = step.new_tensor(LARGEST_STEP)
    return step / (step.abs() / limit).amax(1, keepdim=True).clamp(min=1.0)


def move(views: Views, step: Tensor) -> Views:
    return Views(
        rotation_from_vector(step[:, :3]) @ views.rotations,
        views.shifts + step[:, 3:5],
        views.gains + step[:, 5],
        views.defocus + step[:, 6],
    )


def choose(condition: Tensor, yes: Views, no: Views) -> Views:
    def pick(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(condition.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return Views(*(pick(getattr(yes, f.name), getattr(no, f.name)) for f in fields(yes)))


def fit_views(
    parameters: Parameters,
    views: Views,
    data: Measurement,
    rows: Tensor,
    *,
    priors: Priors,
    iterations: int,
    batch_size: int = 32,
) -> tuple[Views, Tensor]:
    """Refine each view by itself, atoms fixed: Levenberg-Marquardt on its seven parameters.

    Parameters
    ----------
    views : v starting points. rows : (v,) image of ``data`` that each belongs to (several views may share one).

    Returns
    -------
    Views no worse than the start, and their objectives (v,), half the sum of squares plus priors.
    """
    found, scores = [], []
    for batch in batches(len(views), batch_size, rows.device):
        part, best = data[rows[batch]], views[batch]
        normal = normal_equations(expose_views(parameters, best, part), best, part, priors)
        damping = torch.full_like(normal.objective, 1e-3)
        for iteration in range(iterations):
            trial = move(best, own_step(normal, damping))
            if iteration == iterations - 1:
                exposure = expose_views(parameters, trial, part)
                objective = objective_of(exposure, trial, part, priors)
                better = objective < normal.objective
                best, normal = (
                    choose(better, trial, best),
                    replace(normal, objective=torch.minimum(objective, normal.objective)),
                )
                break
            new = normal_equations(expose_views(parameters, trial, part), trial, part, priors)
            better = new.objective < normal.objective
            best = choose(better, trial, best)
            normal = replace(
                normal,
                objective=torch.where(better, new.objective, normal.objective),
                matrix=torch.where(better[:, None, None], new.matrix, normal.matrix),
                slope=torch.where(better[:, None], new.slope, normal.slope),
            )
            damping = torch.where(better, damping * 0.2, damping * 10)
        found.append(best)
        scores.append(normal.objective)
    return Views(*(torch.cat([getattr(v, f.name) for v in found]) for f in fields(Views))), torch.cat(scores)


def objective_of(exposure: Exposure, views: Views, data: Measurement, priors: Priors) -> Tensor:
    """(b,) half the sum of squares plus priors, float64."""
    own = torch.stack((views.gains, views.defocus), 1)
    rest = real_form(exposure.model - data.spectra)
    return (rest.double() ** 2).sum(1) / 2 + (own**2 * priors.precision(own)[5:]).sum(1) / 2
