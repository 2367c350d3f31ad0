"""Bring images onto images and maps onto maps: shifts, rotations and the hand."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from common.data import InputError, Volume
from common.fourier import rfft_frequencies_2d, rfft_frequencies_3d, rfft_multiplicity, shell_mean, shell_sum
from common.gridding import (
    OVERSAMPLING,
    checked_shell,
    interpolate_points,
    interpolate_with_gradient,
    oversampled_transform,
)
from common.masks import smooth_gaussian
from common.rotations import geodesic_distance, mean_rotation, rotation_from_vector, rotation_grid

Weights = tuple[Tensor, Tensor]  # (p,) each, of the moving and of the fixed transform
_N_STEPS = 8  # of Levenberg-Marquardt; from 6 degrees off it converges in 4


def register_images(moving: Tensor, fixed: Tensor, *, max_frequency: float = 0.5, n_steps: int = 5) -> Tensor:
    """The shifts that bring images onto images, from the peak of their cross-correlation.

    Parameters
    ----------
    moving, fixed : (..., n, n) real; shapes broadcast.
    max_frequency : frequencies beyond are left out, cycles per pixel, (0, 0.5].
    n_steps : Newton steps on the band-limited correlation, from the best whole pixel.

    Returns
    -------
    (..., 2) of (x, y), pixels, in [-n / 2, n / 2): ``shift_images(moving, shifts)`` matches ``fixed``.
    """
    n = moving.shape[-1]
    k_x, k_y = rfft_frequencies_2d(n, 1.0, dtype=moving.dtype, device=moving.device)
    cross = torch.fft.rfft2(fixed) * torch.fft.rfft2(moving).conj()
    inside = (k_x.square() + k_y.square() <= max_frequency**2) & (k_x.abs() < 0.5) & (k_y.abs() < 0.5)
    cross = cross * (inside & ((k_x != 0) | (k_y != 0)))
    correlation = torch.fft.irfft2(cross, s=(n, n))
    peak = correlation.flatten(-2).argmax(-1)
    start = torch.stack((peak % n, peak // n), -1)
    shifts = torch.where(start >= (n + 1) // 2, start - n, start).to(moving.dtype)
    k = 2 * math.pi * torch.stack((k_x, k_y), -1)
    weight = rfft_multiplicity(n, dtype=moving.dtype, device=moving.device)
    for _ in range(n_steps):
        # C(s) = sum Re(cross exp(i k s)); its gradient and its curvature
        term = cross * torch.polar(weight.expand(k_x.shape), torch.zeros_like(k_x))
        term = term * torch.exp(1j * (k * shifts[..., None, None, :]).sum(-1))
        gradient = -(term.imag[..., None] * k).sum((-3, -2))
        hessian = -torch.einsum("...yx,yxi,yxj->...ij", term.real, k, k)
        # at a maximum the curvature is negative; elsewhere stay
        a, b, d = hessian[..., 0, 0], hessian[..., 0, 1], hessian[..., 1, 1]
        determinant = a * d - b * b
        concave = (a < 0) & (determinant > 0)
        safe = torch.where(concave, determinant, 1.0)
        g_x, g_y = gradient[..., 0], gradient[..., 1]
        step = -torch.stack((d * g_x - b * g_y, a * g_y - b * g_x), -1)
        step = torch.where(concave[..., None], step / safe[..., None], 0.0)
        shifts = shifts + step.clamp(-0.5, 0.5)
    return shifts


@dataclass(frozen=True)
class Registration:
    """How a moving map lies on a fixed one: ``fixed(x) = moving(x')`` with ``x = R (h x') + t``, h = -1 when inverted.

    rotation : (3, 3) R.
    shift : (3,) t of (x, y, z), angstrom, about voxel ``d // 2``.
    inverted : the hand was changed: the moving map was first inverted through the origin.
    correlation : of the two maps in the band that was compared, shells weighted by their agreement, [-1, 1].
    other_hand : the best correlation with the other hand; NaN when it was not tried.
    """

    rotation: Tensor
    shift: Tensor
    inverted: bool
    correlation: float
    other_hand: float


def apply_registration(moving: Volume, registration: Registration) -> Volume:
    """The moving map brought onto the fixed one, by interpolating its transform; band-limited to Nyquist's sphere."""
    values = moving.values
    d, shell = moving.box_size, checked_shell(moving.box_size, None)
    axis = torch.arange(d, dtype=values.dtype, device=values.device) - d // 2
    k_z, k_y, k_x = torch.meshgrid(axis, axis, axis, indexing="ij")
    inside = k_x**2 + k_y**2 + k_z**2 < (shell + 0.5) ** 2
    k = torch.stack((k_x[inside], k_y[inside], k_z[inside]), -1)
    shift = (registration.shift / moving.voxel_size).to(values)
    moved = _moved(oversampled_transform(values), k, registration.rotation.to(values)[None], registration.inverted)[0]
    moved = moved * torch.exp(-2j * math.pi / d * (k @ shift))
    transform = torch.zeros(d, d, d, dtype=moved.dtype, device=values.device)
    transform[inside] = moved
    result = torch.fft.ifftn(torch.fft.ifftshift(transform)).real
    return Volume(torch.fft.fftshift(result), moving.voxel_size)


def _moved(transform: Tensor, k: Tensor, rotations: Tensor, inverted: bool) -> Tensor:
    """The transform (c, p) of the map turned by each rotation, at box frequencies k (p, 3)."""
    points = (OVERSAMPLING * k @ rotations).reshape(-1, 3)
    values = interpolate_points(transform, points).view(len(rotations), -1)
    return values.conj() if inverted else values


def centre_of_contrast(values: Tensor, smoothing: float = 2.0) -> Tensor:
    """The centroid (x, y, z), voxels from the origin, of the smoothed square of a map (d, d, d)."""
    d = values.shape[-1]
    square = smooth_gaussian((values - values.mean()).square(), smoothing)
    weight = (square - 2 * square.mean()).clamp(min=0)
    axis = torch.arange(d, dtype=values.dtype, device=values.device) - d // 2
    total = weight.sum().clamp(min=torch.finfo(values.dtype).tiny)
    sums = (weight.sum((0, 1)) @ axis, weight.sum((0, 2)) @ axis, weight.sum((1, 2)) @ axis)
    return torch.stack(sums) / total


def _centred(volume: Volume, max_shell: int) -> tuple[Tensor, Tensor]:
    """The oversampled transform of the map moved to its centre of contrast, and that centre (voxels)."""
    centre = centre_of_contrast(volume.values)
    k = rfft_frequencies_3d(volume.box_size, 1.0, dtype=centre.dtype, device=centre.device)
    ramp = torch.exp(2j * math.pi * sum((k[i] * centre[i] for i in range(3)), torch.zeros_like(k[0])))
    moved = torch.fft.irfftn(torch.fft.rfftn(volume.values) * ramp, s=volume.values.shape)
    return oversampled_transform(moved, max_shell), centre


def _flattening(transform: Tensor, k: Tensor) -> Tensor:
    """For each frequency k (p, 3), one over the rms amplitude of its shell; 0 where there is none."""
    power = interpolate_points(transform, OVERSAMPLING * k).abs().square()
    shells = k.norm(dim=-1).round().long()
    mean = shell_mean(power, shells, int(shells.max()) + 1)
    return torch.where(mean > 1e-12 * mean.max(), mean, torch.inf).rsqrt()[shells]


def _half_ball(max_shell: int, n_points: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """At most ``n_points`` whole frequencies (p, 3) of one half space, shells 1 to ``max_shell``."""
    axis = torch.arange(-max_shell, max_shell + 1, device=like.device)
    k_z, k_y, k_x = torch.meshgrid(axis, axis, axis, indexing="ij")
    first = (k_z > 0) | ((k_z == 0) & ((k_y > 0) | ((k_y == 0) & (k_x > 0))))
    inside = first & (k_x**2 + k_y**2 + k_z**2 < (max_shell + 0.5) ** 2)
    k = torch.stack((k_x[inside], k_y[inside], k_z[inside]), -1).to(like.dtype)
    if len(k) <= n_points:
        return k
    return k[torch.randperm(len(k), generator=generator)[:n_points].to(like.device)]


def _coarse_scores(moving: Tensor, fixed: Tensor, k: Tensor, flat: Weights, rotations: Tensor) -> Tensor:
    """Correlation (2, c) of the fixed map with the turned one and with its inverse, from the nearest grid points."""
    size = moving.shape[-1]
    target = interpolate_points(fixed, OVERSAMPLING * k) * flat[0] * flat[1]
    real, imaginary = moving.real.flatten(), moving.imag.flatten()
    scores = []
    for batch in rotations.split(512):
        index = (OVERSAMPLING * k @ batch).round().long() + size // 2
        place = ((index[..., 2] * size + index[..., 1]) * size + index[..., 0]).flatten()
        a = real[place].view(len(batch), -1) @ target.real
        b = imaginary[place].view(len(batch), -1) @ target.imag
        scores.append(torch.stack((a + b, a - b)))
    return torch.cat(scores, 1)


def _refined(
    moving: Tensor, fixed: Tensor, k: Tensor, weights: Weights, d: int, start: tuple[Tensor, Tensor], inverted: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Levenberg-Marquardt on rotations (c, 3, 3) and shifts (c, 3), voxels, at frequencies k; and the correlations.

    ``weights`` multiply the moving and the fixed transform.
    """
    rotations, shifts = start
    target = interpolate_points(fixed, OVERSAMPLING * k) * weights[1]
    damping = torch.full((len(rotations),), 1e-2, dtype=k.dtype, device=k.device)

    def correlate(rotations: Tensor, shifts: Tensor) -> Tensor:
        model = _moved(moving, k, rotations, inverted) * torch.exp(-2j * math.pi / d * (shifts @ k.T)) * weights[0]
        norm = model.abs().square().sum(-1) * target.abs().square().sum()
        return (model * target.conj()).real.sum(-1) / norm.sqrt().clamp(min=torch.finfo(k.dtype).tiny)

    best = correlate(rotations, shifts)
    for _ in range(_N_STEPS):
        values, slopes = interpolate_with_gradient(moving, (OVERSAMPLING * k @ rotations).reshape(-1, 3))
        if inverted:
            values, slopes = values.conj(), slopes.conj()
        phase = torch.exp(-2j * math.pi / d * (shifts @ k.T)) * weights[0]
        model = values.view(len(rotations), -1) * phase
        # exp(w) R turns the point R' k by R' (k x w), so its slope along w is (slope in the view) x k
        view = torch.einsum("cpi,cji->cpj", slopes.view(len(rotations), -1, 3), rotations.to(slopes.dtype))
        turn = OVERSAMPLING * torch.linalg.cross(view, k.to(view.dtype).expand_as(view)) * phase[..., None]
        move = model[..., None] * (-2j * math.pi / d * k)
        jacobian = torch.view_as_real(torch.cat((turn, move), -1).transpose(1, 2)).flatten(2)
        scale = (model * target.conj()).real.sum(-1) / model.abs().square().sum(-1)
        residual = torch.view_as_real(target - scale[:, None] * model).flatten(1)
        jacobian = jacobian * scale[:, None, None]
        normal = jacobian @ jacobian.mT
        gradient = (jacobian @ residual[..., None]).squeeze(-1)
        normal = normal + torch.diag_embed(normal.diagonal(dim1=1, dim2=2) * damping[:, None])
        step = torch.linalg.solve(normal, gradient)
        tried = rotation_from_vector(step[:, :3]) @ rotations, shifts + step[:, 3:]
        score = correlate(*tried)
        better = score > best
        rotations = torch.where(better[:, None, None], tried[0], rotations)
        shifts = torch.where(better[:, None], tried[1], shifts)
        best = torch.where(better, score, best)
        damping = torch.where(better, damping / 4, damping * 8)
    return rotations, shifts, best


def _agreement(
    moving: Tensor, fixed: Tensor, k: Tensor, flat: Weights, d: int, pose: tuple[Tensor, Tensor], inverted: bool
) -> Weights:
    """The flattening weights times what each frequency is worth, sqrt(c / (1 - c^2)) from its shell's correlation c."""
    target = interpolate_points(fixed, OVERSAMPLING * k)
    model = _moved(moving, k, pose[0][None], inverted)[0] * torch.exp(-2j * math.pi / d * (k @ pose[1]))
    shells = k.norm(dim=-1).round().long()
    n_shells = int(shells.max()) + 1
    cross, a, b = (
        shell_sum(term, shells, n_shells)
        for term in ((model * target.conj()).real, model.abs().square(), target.abs().square())
    )
    c = cross / (a * b).sqrt().clamp(min=torch.finfo(k.dtype).tiny)
    c = (c[:-2] + 2 * c[1:-1] + c[2:]) / 4 if len(c) > 2 else c  # smooth: a shell's own chance agreement misleads
    c = torch.nn.functional.pad(c[None], (1, 1), mode="replicate")[0] if n_shells > 2 else c
    c = c.clamp(0.01, 0.99)
    worth = (c / (1 - c * c)).sqrt()[shells]
    return flat[0] * worth, flat[1] * worth


def _distinct(rotations: Tensor, scores: Tensor, n: int, apart: float) -> Tensor:
    """Indices of the best ``n`` rotations that differ by more than ``apart`` degrees."""
    order = scores.argsort(descending=True)[: 20 * n]
    kept: list[int] = []
    for i in order.tolist():
        if not kept or float(geodesic_distance(rotations[i], rotations[kept]).min()) > apart:
            kept.append(i)
        if len(kept) == n:
            break
    return torch.tensor(kept, device=rotations.device)


def register_volumes(
    moving: Volume,
    fixed: Volume,
    *,
    search_hand: bool = True,
    resolution: float | None = None,
    n_candidates: int = 24,
    seed: int = 0,
) -> Registration:
    """The rotation, translation and hand that bring a map onto another.

    Parameters
    ----------
    moving, fixed : maps on the same grid, each with one particle well inside the box.
    search_hand : also try the moving map inverted through the origin.
    resolution : finest detail compared, angstrom; Nyquist's when None.
    n_candidates : rotations of the coarse search that are refined, for each hand.
    seed : of the random frequencies on which the maps are compared.

    Returns
    -------
    The best :class:`Registration`. For a particle with symmetry it is one of the equivalent ones.

    Raises
    ------
    InputError : the maps differ in box or voxel size.

    Notes
    -----
    Both maps are centred on their contrast and their shells brought to equal power. All rotations 12 degrees apart are
    scored on shells 1-10; the best distinct ones are refined by Levenberg-Marquardt there, the best three and then the
    best on up to 20,000 frequencies of the whole band, weighted by the agreement of each
    shell. The particles' centres must be found to about 0.1 of the box for the first step.
    """
    if moving.box_size != fixed.box_size or abs(moving.voxel_size - fixed.voxel_size) > 1e-4 * fixed.voxel_size:
        raise InputError(
            f"the maps have boxes of {moving.box_size} and {fixed.box_size} voxels of {moving.voxel_size} and "
            f"{fixed.voxel_size} angstrom, expected the same: resample one"
        )
    d, voxel = fixed.box_size, fixed.voxel_size
    limit = checked_shell(d, None)
    fine = limit if resolution is None else max(4, min(limit, round(d * voxel / resolution)))
    coarse = min(10, fine)
    generator = torch.Generator().manual_seed(seed)
    (moving_ft, moving_centre), (fixed_ft, fixed_centre) = _centred(moving, fine), _centred(fixed, fine)
    grid = rotation_grid(290, 30, dtype=fixed.values.dtype, device=fixed.values.device).reshape(-1, 3, 3)
    few = _half_ball(coarse, 1200, fixed.values, generator)
    many = _half_ball(fine, 20000, fixed.values, generator)
    flat_few, flat_many = ((_flattening(moving_ft, k), _flattening(fixed_ft, k)) for k in (few, many))
    scores = _coarse_scores(moving_ft, fixed_ft, few, flat_few, grid)
    results: list[tuple[float, Tensor, Tensor]] = []
    for inverted in (False, True) if search_hand else (False,):
        starts = grid[_distinct(grid, scores[int(inverted)], n_candidates, 15.0)]
        still = starts.new_zeros(len(starts), 3)
        rotations, shifts, found = _refined(moving_ft, fixed_ft, few, flat_few, d, (starts, still), inverted)
        for n_best in (3, 1):
            top = found.argsort(descending=True)[:n_best]
            start = rotations[top], shifts[top]
            weights = _agreement(moving_ft, fixed_ft, many, flat_many, d, (start[0][0], start[1][0]), inverted)
            rotations, shifts, found = _refined(moving_ft, fixed_ft, many, weights, d, start, inverted)
        best = int(found.argmax())
        results.append((float(found[best]), rotations[best], shifts[best]))
    chosen = max(range(len(results)), key=lambda i: results[i][0])
    correlation, rotation, shift = results[chosen]
    rotation = mean_rotation(rotation[None])  # rounding of many small turns
    sign = -1.0 if chosen else 1.0
    total = fixed_centre + shift - sign * rotation @ moving_centre
    other = results[1 - chosen][0] if search_hand else math.nan
    return Registration(rotation, total * voxel, bool(chosen), correlation, other)
