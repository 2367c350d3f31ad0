"""A map from images whose poses are known: Wiener-weighted insertion of their transforms, and half maps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from common.data import ImageStack, InputError, Poses, Volume
from common.fourier import rfft2_origin
from common.gridding import (
    OVERSAMPLING,
    averaged_transform,
    checked_shell,
    interpolate_points,
    map_from_transform,
    oversampled_transform,
    spread_channels,
    spread_points,
    transform_size,
    window_volume,
)
from common.projection import shift_factors, slice_frequencies, slice_points
from common.resolution import FSC


def accumulate(
    images: Tensor,
    rotations: Tensor,
    shifts: Tensor,
    *,
    ctf: Tensor | None = None,
    weights: Tensor | None = None,
    max_shell: int | None = None,
    batch_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """Insert images into the oversampled transform: the two sums of the Wiener filter.

    Parameters
    ----------
    images : (n, d, d) real.
    rotations : (n, 3, 3).
    shifts : (n, 2) of (x, y), pixels.
    ctf : (n, d, d // 2 + 1) or (n, d, d) real, order of ``rfft2`` or ``fft2``; 1 when None.
    weights : (n,) inverse noise variances, >= 0; 1 when None.
    max_shell : shells beyond are left out; all inside Nyquist when None.
    batch_size : images inserted at once.

    Returns
    -------
    ``sum w CTF image`` complex and ``sum w CTF^2`` real, (m, m, m) each, spread with the window. The sums of two
    sets of images add.
    """
    d = images.shape[-1]
    shell = checked_shell(d, max_shell)
    frequencies, index = slice_frequencies(d, shell, dtype=images.dtype, device=images.device)
    size = transform_size(shell)
    sums = [images.new_zeros(size, size, size) for _ in range(3)]
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        transfer, weight = _transfer(part, len(images), frequencies, index, ctf, weights)
        transforms = rfft2_origin(images[part]) * shift_factors(shifts[part], d).conj()
        values = (transforms.flatten(1)[:, index] * (transfer * weight)).flatten()
        points = slice_points(rotations[part], frequencies)
        square = (transfer.square() * weight).flatten()
        for total, more in zip(sums, spread_channels((values.real, values.imag, square), points, size), strict=True):
            total += more
    return _both_halves(torch.complex(sums[0], sums[1])), _both_halves(sums[2])


def _transfer(
    part: slice, n: int, frequencies: Tensor, index: Tensor, ctf: Tensor | None, weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """CTF and weight (b, p) of the images in ``part`` at the frequencies of a slice."""
    # column 0 of an rfft image holds both signs of each frequency, the other columns one
    once = torch.where(frequencies[:, 0] == 0, 0.5, 1.0).to(frequencies.dtype)
    weight = once.expand(len(range(n)[part]), -1) if weights is None else weights[part, None] * once
    if ctf is None:
        return torch.ones_like(weight), weight
    return ctf[part, :, : ctf.shape[1] // 2 + 1].flatten(1)[:, index], weight


def _both_halves(grid: Tensor) -> Tensor:
    mates = grid.flip((0, 1, 2))
    return grid + (mates.conj() if grid.is_complex() else mates)


def accumulate_model(
    values: Tensor,
    rotations: Tensor,
    *,
    ctf: Tensor | None = None,
    weights: Tensor | None = None,
    max_shell: int | None = None,
    batch_size: int = 64,
) -> Tensor:
    """The first sum of :func:`accumulate` for noise-free images of a map ``values`` (d, d, d), without making them."""
    d = values.shape[-1]
    shell = checked_shell(d, max_shell)
    frequencies, index = slice_frequencies(d, shell, dtype=values.dtype, device=values.device)
    transform = oversampled_transform(values, shell)
    total = torch.zeros_like(transform)
    for start in range(0, len(rotations), batch_size):
        part = slice(start, start + batch_size)
        transfer, weight = _transfer(part, len(rotations), frequencies, index, ctf, weights)
        points = slice_points(rotations[part], frequencies)
        predicted = interpolate_points(transform, points) * (transfer.square() * weight).flatten()
        total += spread_points(predicted, points, transform.shape[-1])
    return _both_halves(total)


def _grid_shells(size: int, device: torch.device) -> Tensor:
    axis = (torch.arange(size, device=device, dtype=torch.float64) - size // 2) / OVERSAMPLING
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    return (x * x + y * y + z * z).sqrt().round().long()


def shell_density(density: Tensor) -> Tensor:
    """The mean of ``sum w CTF^2`` per Fourier coefficient of the box, for each shell that the grid holds."""
    shells = _grid_shells(density.shape[-1], density.device)
    last = (density.shape[-1] // 2 - 3) // OVERSAMPLING
    inside = shells <= last
    counts = torch.bincount(shells[inside], minlength=last + 1).to(density.dtype)
    sums = density.new_zeros(last + 1).index_add(0, shells[inside], density[inside])
    return sums / counts * (OVERSAMPLING**3 / window_volume())


def _denominator(density: Tensor, prior: Tensor, floor: float) -> tuple[Tensor, Tensor, Tensor]:
    """Density plus prior, the prior alone, and where anything was measured, on the grid."""
    mean = shell_density(density)
    added = torch.maximum(prior[: len(mean)], floor * mean)
    shells = _grid_shells(density.shape[-1], density.device)
    on_grid = added[shells.clamp(max=len(mean) - 1)]
    total = density * (OVERSAMPLING**3 / window_volume()) + on_grid
    return total, on_grid, (shells < len(mean)) & (total > 0)


def solve_wiener(numerator: Tensor, density: Tensor, box_size: int, prior: Tensor, *, floor: float = 1e-3) -> Tensor:
    """The map from the two sums of :func:`accumulate`.

    Parameters
    ----------
    numerator, density : (m, m, m).
    box_size : d, pixels.
    prior : (s,) for each shell, added to the density: noise over signal power, in units of :func:`shell_density`.
    floor : the least prior, as a fraction of the shell's mean density; keeps unmeasured coefficients at zero.

    Returns
    -------
    (d, d, d).
    """
    total, _, measured = _denominator(density, prior, floor)
    scale = OVERSAMPLING**3 / window_volume()
    average = torch.where(measured, numerator * scale / torch.where(measured, total, 1.0), 0.0)
    return map_from_transform(average, box_size)


def residual_numerator(
    values: Tensor, numerator: Tensor, model: Tensor, density: Tensor, prior: Tensor, *, floor: float = 1e-3
) -> Tensor:
    """What the normal equations still lack: data minus model (:func:`accumulate_model`) minus the prior's pull."""
    _, on_grid, _ = _denominator(density, prior, floor)
    shell = (density.shape[-1] // 2 - 3) // OVERSAMPLING
    pull = averaged_transform(values, shell) * on_grid * (window_volume() / OVERSAMPLING**3)
    return numerator - model - pull


def reconstruct(
    stack: ImageStack,
    poses: Poses,
    *,
    ctf: Tensor | None = None,
    weights: Tensor | None = None,
    fsc: FSC | None = None,
    signal_power: Tensor | None = None,
    symmetry: Tensor | None = None,
    mask: Tensor | None = None,
    n_corrections: int = 1,
    max_shell: int | None = None,
    batch_size: int = 64,
) -> Volume:
    """The map that explains images with known poses.

    Parameters
    ----------
    stack : n images; their noise is white (whiten images and CTF alike when it is not).
    poses : their poses.
    ctf : (n, d, d // 2 + 1) or (n, d, d), real: each image is the projection times its CTF; 1 when None.
    weights : (n,) inverse noise variances per pixel; 1 when None.
    fsc : correlation of this map with the truth per shell; sets the prior ``density (1 - FSC) / FSC`` [1]_, eq. 13.
    signal_power : (d // 2 + 1,) expected ``|fftn(values)|^2`` per shell, for weights in true units; or ``fsc``.
    symmetry : (g, 3, 3) rotations of the specimen onto itself (:func:`common.rotations.point_group`).
    mask : (d, d, d), multiplied onto the result.
    n_corrections : steps of the normal equations' residual after the weighted mean, >= 0; each costs as much again.
    max_shell : band limit, shells of 1 / (d pixel_size).
    batch_size : images inserted at once.

    Returns
    -------
    Volume (d, d, d) in units of the images per angstrom, so that ``project`` of it gives the images.

    Raises
    ------
    InputError : numbers of images, poses, CTFs or weights differ, or both fsc and signal_power are given.

    Notes
    -----
    The weighted mean around each point of the transform, Wiener-filtered, is 5 % off for a noise-free particle of half
    the box, because the views lie unevenly within the window; one correction leaves 1 %, three 0.3 %. Cost O(n d^2).

    References
    ----------
    .. [1] Scheres, "A Bayesian view on cryo-EM structure determination", J. Mol. Biol. 415, 406 (2012).
       doi:10.1016/j.jmb.2011.11.010
    """
    n, d, pixel = len(stack), stack.box_size, stack.pixel_size
    for name, given in (("poses", len(poses)), ("CTFs", None if ctf is None else len(ctf))):
        if given is not None and given != n:
            raise InputError(f"{given} {name} for {n} images, expected one each")
    if weights is not None and weights.shape != (n,):
        raise InputError(f"the weights have shape {tuple(weights.shape)}, expected ({n},), one for each image")
    if fsc is not None and signal_power is not None:
        raise InputError("both fsc and signal_power are given, expected one of them: each sets the prior")
    group = torch.eye(3).to(poses.rotations)[None] if symmetry is None else symmetry.to(poses.rotations)
    options: dict[str, Any] = {"ctf": ctf, "weights": weights, "max_shell": max_shell, "batch_size": batch_size}
    numerator, density = accumulate(stack.images, poses.rotations @ group[0], poses.shifts / pixel, **options)
    for element in group[1:]:
        more = accumulate(stack.images, poses.rotations @ element, poses.shifts / pixel, **options)
        numerator, density = numerator + more[0], density + more[1]
    prior = _prior(density, fsc, signal_power, d, pixel)
    values = solve_wiener(numerator, density, d, prior)
    for _ in range(n_corrections):
        models = (accumulate_model(values, poses.rotations @ element, **options) for element in group)
        model = sum(models, torch.zeros_like(numerator))
        residual = residual_numerator(values, numerator, model, density, prior)
        values = values + solve_wiener(residual, density, d, prior)
    return Volume(values / pixel if mask is None else values * mask / pixel, pixel)


def _prior(density: Tensor, fsc: FSC | None, signal_power: Tensor | None, d: int, pixel: float) -> Tensor:
    mean = shell_density(density)
    if fsc is not None:
        correlation = fsc.correlation[: len(mean)].clamp(1e-3, 1 - 1e-6).to(mean)
        return mean * (1 - correlation) / correlation
    if signal_power is not None:
        # noise power of a transform is d^2 times its variance per pixel; a projection is the sum times the voxel size
        power = signal_power[: len(mean)].to(mean) * pixel**2
        return d**2 / power.clamp(min=torch.finfo(mean.dtype).tiny * d**4)
    return torch.zeros_like(mean)


def split_halves(n: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The image numbers of two random halves, each sorted; the first is the larger when n is odd."""
    order = torch.randperm(n, generator=generator, device=generator.device)
    return order[: (n + 1) // 2].sort().values, order[(n + 1) // 2 :].sort().values


def reconstruct_halves(
    stack: ImageStack,
    poses: Poses,
    *,
    generator: torch.Generator,
    ctf: Tensor | None = None,
    weights: Tensor | None = None,
    symmetry: Tensor | None = None,
    mask: Tensor | None = None,
    n_corrections: int = 1,
    max_shell: int | None = None,
    batch_size: int = 64,
) -> tuple[Volume, Volume]:
    """Two independent maps from random halves of the images, drawn by ``generator``.

    Parameters
    ----------
    stack, poses, ctf, weights, symmetry, mask, n_corrections, max_shell, batch_size : as for :func:`reconstruct`.

    Returns
    -------
    Two volumes, without a prior.

    Raises
    ------
    InputError : fewer than two images.
    """
    if len(stack) < 2:
        raise InputError(f"{len(stack)} images, expected at least two for half maps")
    first, second = (
        reconstruct(
            stack[index],
            poses[index],
            ctf=None if ctf is None else ctf[index],
            weights=None if weights is None else weights[index],
            symmetry=symmetry,
            mask=mask,
            n_corrections=n_corrections,
            max_shell=max_shell,
            batch_size=batch_size,
        )
        for index in (half.to(stack.images.device) for half in split_halves(len(stack), generator=generator))
    )
    return first, second
