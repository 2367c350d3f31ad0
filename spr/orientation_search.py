"""Score images against the views of a map, over all orientations and nearby shifts, and average images back into a map.

Images and views are sampled on rings in Fourier space, where an in-plane rotation is a cyclic shift, so that the scores
of all in-plane angles are one product per angular order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.gridding import OVERSAMPLING, TAPS, interpolate_points, oversampled_transform
from common.rotations import fibonacci_directions, random_rotations, rotations_to_directions
from spr.ring_images import RingImages, ring_vectors


@dataclass(frozen=True)
class Views:
    """Central slices of a map on rings.

    frames : (v, 3, 3) rotations whose views are taken; in-plane rotations are added by the score.
    spectra : (m, 2 s, v) angular orders m = 0 .. A / 2 of the rings, real parts then imaginary parts, ring-weighted.
    power : (s, v) weighted power of each ring.
    points : (v s A / 2, 3) where the samples lie in the oversampled transform of the map.
    """

    frames: Tensor
    spectra: Tensor
    power: Tensor
    points: Tensor


def random_frames(n_directions: int, *, generator: torch.Generator) -> Tensor:
    """Even view directions, the whole set turned at random: (v, 3, 3)."""
    directions = fibonacci_directions(n_directions)
    turned = directions @ random_rotations(1, generator=generator)[0].to(directions)
    return rotations_to_directions(turned, torch.zeros(n_directions, dtype=turned.dtype))


def views_of(
    values: Tensor, frames: Tensor, shells: Tensor, n_angles: int, weights: Tensor, *, taps: int = TAPS
) -> Views:
    """Take the views of a map.

    Parameters
    ----------
    values : (d, d, d).
    frames : (v, 3, 3).
    shells : (s,) ring radii in steps of 1 / (d voxel_size).
    n_angles : samples on a whole ring, even.
    weights : (s,) ring weights, `RingImages.weights`.
    taps : of the gridding window, 2 (fast) or 4.
    """
    half = n_angles // 2
    in_plane = (OVERSAMPLING * ring_vectors(shells, n_angles)[:, :half]).reshape(-1, 2)
    points = (in_plane @ frames[:, :2, :]).reshape(-1, 3)
    transform = oversampled_transform(values, math.ceil(float(shells.max())), taps=taps)
    slices = interpolate_points(transform, points, taps=taps).view(len(frames), len(shells), half)
    rings = torch.cat((slices, slices.conj()), -1)
    spectra = torch.fft.fft(rings, dim=-1)[..., : half + 1] * weights[:, None]
    stacked = torch.cat((spectra.real, spectra.imag), 1).permute(2, 1, 0).contiguous()
    return Views(frames, stacked, (rings.abs().square().sum(-1) * weights).T.contiguous(), points)


def joined_views(views: Sequence[Views]) -> Views:
    """The views of several maps, v of each, as those of one: map k has views k v to (k + 1) v - 1."""
    if len(views) == 1:
        return views[0]
    return Views(
        torch.cat([part.frames for part in views]),
        torch.cat([part.spectra for part in views], -1),
        torch.cat([part.power for part in views], -1),
        torch.cat([part.points for part in views]),
    )


def angular_synthesis(n_angles: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Matrices between angular orders and angles of a real function of an angle.

    Returns
    -------
    (A, 2 m) from (real, imaginary) parts of orders 0 .. A / 2 to angles, and (2 m, A) back:
    ``sum_a p exp(-i m angle)``.
    """
    order = torch.arange(n_angles // 2 + 1, dtype=torch.float64)
    angle = torch.arange(n_angles, dtype=torch.float64) * (2 * math.pi / n_angles)
    once = torch.full_like(order, 2.0)
    once[0] = once[-1] = 1.0
    cosine, sine = torch.cos(angle[:, None] * order), torch.sin(angle[:, None] * order)
    to_angles = torch.stack((once * cosine, -once * sine), -1).flatten(1) / n_angles
    to_orders = torch.stack((cosine, -sine), -1).flatten(1).T.contiguous()
    return to_angles.to(like), to_orders.to(like)


def log_likelihoods(images: RingImages, index: Tensor, shifts: Tensor, views: Views) -> tuple[Tensor, Tensor]:
    """Log likelihood ratio against no particle, for every pose.

    Parameters
    ----------
    index : (k,) images.
    shifts : (k, t, 2) trial positions of the particle, angstrom.

    Returns
    -------
    (A, k, t, v) nats, for in-plane angles, images, shifts and views, without the prior of the shift; and the images'
    angular orders times transfer (m, 2 k t, 2 s), in the form that `averaged_rings` takes.
    """
    n_angles, (k, t) = images.rings.shape[-1], shifts.shape[:2]
    stacked = turned_orders(images, index, shifts)
    products = torch.bmm(stacked, views.spectra)  # Re and Im of conj(image) * view
    to_angles, _ = angular_synthesis(n_angles, stacked)
    scores = (to_angles @ products.reshape(n_angles + 2, -1)).reshape(n_angles, k, t, -1)
    scores -= (0.5 * images.transfer[index].square().mean(-1) @ views.power)[:, None, :]
    return scores, stacked


def turned_orders(images: RingImages, index: Tensor, shifts: Tensor) -> Tensor:
    """Angular orders of the images ``index`` (k,) times transfer, the particle brought from ``shifts`` (k, t, 2) to 0.

    Returns
    -------
    (m, 2 k t, 2 s) real: ``[[re, im], [-im, re]]`` for each order.
    """
    rings, transfer = images.rings[index], images.transfer[index]
    half = rings.shape[-1] // 2
    vectors = images.ring_vectors()[:, :half]
    phase = 2 * math.pi * torch.einsum("kti,sai->ktsa", shifts, vectors)
    centred = (rings * transfer)[:, None, :, :half] * torch.polar(torch.ones_like(phase), phase)
    spectra = torch.fft.fft(torch.cat((centred, centred.conj()), -1), dim=-1)[..., : half + 1]
    spectra = spectra.reshape(-1, rings.shape[-2], half + 1).permute(2, 0, 1)
    real, imaginary = spectra.real, spectra.imag
    return torch.cat((torch.cat((real, imaginary), 2), torch.cat((-imaginary, real), 2)), 1)


def averaged_rings(stacked: Tensor, orders: Tensor) -> Tensor:
    """Sum of images turned onto the views, weighted by the posterior.

    Parameters
    ----------
    stacked : (m, 2 b, 2 s) from `log_likelihoods`.
    orders : (2 m, b v) angular orders of the posterior.

    Returns
    -------
    (m, 2 s, v): real then imaginary parts of the angular orders of the sums.
    """
    m, rows, columns = stacked.shape
    b, s = rows // 2, columns // 2
    real, imaginary = stacked[:, :b, :s], stacked[:, :b, s:]
    turned = torch.cat((torch.cat((real, imaginary), 2), torch.cat((-imaginary, real), 2)), 1)
    return torch.bmm(turned.transpose(1, 2), orders.reshape(m, 2 * b, -1))


@dataclass(frozen=True)
class Expectation:
    """What a set of images says about their poses, and about the map through them.

    sums : (m, 2 s, v) posterior-weighted sums of the images on each view (angular orders).
    counts : (s, v) posterior-weighted sums of the squared transfer.
    best : (k,) nats, of the best pose, with the prior. evidence : (k,) nats, the tempered log mean over poses.
    rotations, shifts : (k, 3, 3), (k, 2) the best pose.
    """

    sums: Tensor
    counts: Tensor
    best: Tensor
    evidence: Tensor
    rotations: Tensor
    shifts: Tensor


def log_prior(images: RingImages, index: Tensor, shifts: Tensor) -> Tensor:
    """(k, t) of trial shifts (k, t, 2): Gaussian about the expected centre."""
    away = shifts - images.centres[index][:, None]
    return -away.square().sum(-1) / (2 * images.centre_sigma**2)


def expectation(
    images: RingImages, index: Tensor, shifts: Tensor, views: Views, temperature: float, *, batch_size: int = 4
) -> Expectation:
    """Posterior over poses of the images ``index`` at a temperature, and the averages it gives.

    Parameters
    ----------
    index : (k,) images.
    shifts : (k, t, 2) trial shifts, angstrom.
    views : of the current map.
    temperature : >= 1; 1 is the likelihood itself.
    batch_size : images at a time; small ones keep the scores in the processor's cache.
    """
    n_angles = images.rings.shape[-1]
    n_views = len(views.frames)
    _, to_orders = angular_synthesis(n_angles, views.power)
    sums = torch.zeros_like(views.spectra)
    counts = torch.zeros_like(views.power)
    rows = []
    for start in range(0, len(index), batch_size):
        these, trial = index[start : start + batch_size], shifts[start : start + batch_size]
        k, t = trial.shape[:2]
        scores, stacked = log_likelihoods(images, these, trial, views)
        scores += log_prior(images, these, trial)[:, :, None]
        best, place = scores.transpose(0, 1).reshape(k, -1).max(1)
        # below -60 nothing counts, and denormal numbers are slow
        posterior = scores.sub_(best[:, None, None]).div_(temperature).clamp_(min=-60.0).exp_()
        orders = to_orders @ posterior.reshape(n_angles, -1)
        total = orders[0].view(k, -1).sum(1)
        orders = orders.view(-1, k, t * n_views).div_(total[:, None]).view(n_angles + 2, -1)
        sums += averaged_rings(stacked, orders)
        weight = orders[0].view(k, t, n_views).sum(1)
        counts += images.transfer[these].square().mean(-1).T @ weight
        angle, trial_number, view = place // (t * n_views), (place // n_views) % t, place % n_views
        turn = angle * (360.0 / n_angles)
        frames = in_plane_rotations(turn) @ views.frames[view]
        chosen = trial[torch.arange(k, device=trial.device), trial_number]
        rows.append((best, best + temperature * total.log(), frames, chosen))
    best, evidence, rotations, chosen = (torch.cat(column) for column in zip(*rows, strict=True))
    return Expectation(sums, counts, best, evidence, rotations, chosen)


def in_plane_rotations(degrees: Tensor) -> Tensor:
    """Rz(-angle): the view turned so that its ring sample at ``angle`` comes to angle 0."""
    angle = torch.deg2rad(degrees)
    c, s = torch.cos(angle), torch.sin(angle)
    zero, one = torch.zeros_like(c), torch.ones_like(c)
    return torch.stack((c, s, zero, -s, c, zero, zero, zero, one), -1).view(-1, 3, 3)


def temperature_for(scores: Tensor, effective_poses: float) -> float:
    """The temperature at which the posterior is spread over so many poses.

    Parameters
    ----------
    scores : (k, p) nats; the geometric mean over the k images of ``1 / sum p^2`` is what counts.
    effective_poses : >= 1.

    Returns
    -------
    Temperature, at least 1 (the true likelihood), at most e^6.
    """
    top = scores.topk(min(scores.shape[1], max(2000, int(20 * effective_poses))), 1).values
    top = top - top[:, :1]
    low, high = 0.0, 6.0
    for _ in range(14):
        middle = (low + high) / 2
        p = torch.softmax(top / math.exp(middle), 1)
        spread = float(torch.exp(-p.square().sum(1).log().mean()))
        low, high = (middle, high) if spread < effective_poses else (low, middle)
    return math.exp(high) if high > 1e-3 else 1.0
