"""Class averages on rings in Fourier space, each with the uncertainty that its images leave.

An average is known up to a Gaussian: its prior is a random image within the particle's disc, with the mean and the
power that all images have together, its likelihood the posterior-weighted sums of the images. Ring orders of different
number are independent, so that each is a linear system as small as the number of rings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.special import jv
from torch import Tensor

from spr.map_update import rings_from_orders
from spr.orientation_search import Views
from spr.ring_images import RingImages

_LEAST_POWER = 1e-3  # of the strongest ring, so that none is taken as known to be empty
_RANK = 1e-6  # eigenvalues below this fraction of the largest are left out


@dataclass(frozen=True)
class AveragePrior:
    """What is known of a class average before its images.

    mean : (m, s) real, of each angular order and ring; the rotational mean, so order 0 alone.
    root : (m, s, r) real; its product with its own transpose is the covariance of an order over the rings.
    weights : (s,) of the rings. n_angles : samples on a whole ring.
    """

    mean: Tensor
    root: Tensor
    weights: Tensor
    n_angles: int


@dataclass(frozen=True)
class Averages:
    """The posterior of class averages.

    orders : (k, m, s) complex, their means. power : (s, k) expected weighted power of each ring, with the uncertainty.
    evidence : (k,) nats that the images of each class gain, the average integrated out.
    """

    orders: Tensor
    power: Tensor
    evidence: Tensor


def disc_covariance(frequencies: Tensor, n_orders: int, radius: float) -> Tensor:
    """Covariance over rings of each angular order of white noise in a disc: (m, s, s), of unit mean power on a ring.

    Parameters
    ----------
    frequencies : (s,) 1/angstrom. n_orders : orders 0 .. m - 1. radius : of the disc, angstrom.

    Notes
    -----
    The transform of ``f_m(r) exp(i m phi)`` on a ring of radius k is the Hankel transform
    ``2 pi (-i)^m int f_m J_m(2 pi k r) r dr``; the sum over all orders of ``J_m^2`` is 1.
    """
    n = max(64, math.ceil(8 * radius * float(frequencies.max())))
    r = (torch.arange(n, dtype=torch.float64) + 0.5) * (radius / n)
    argument = 2 * math.pi * frequencies.double().cpu()[:, None] * r
    rows = [torch.from_numpy(jv(order, argument.numpy())) for order in range(n_orders)]
    bessel = torch.stack(rows)  # (m, s, r)
    return torch.einsum("msr,mtr,r->mst", bessel, bessel, r / r.sum()).to(frequencies)


def average_prior(images: RingImages, radius: float) -> AveragePrior:
    """The prior of a class average, from the power and the rotational mean of all images.

    radius : of the disc that holds an average, angstrom.
    """
    n_angles = images.rings.shape[-1]
    n_orders = n_angles // 2 + 1
    square = images.transfer.square().mean((0, 2))
    vectors = images.ring_vectors()
    total = torch.zeros_like(square)
    for part in torch.arange(len(images), device=square.device).split(128):
        turn = 2 * math.pi * torch.einsum("ni,sai->nsa", images.centres[part], vectors)
        centred = images.rings[part] * torch.polar(torch.ones_like(turn), turn)
        total += (centred.real * images.transfer[part]).mean(-1).sum(0)
    mean = total / len(images) / square.clamp(min=1e-12)
    excess = images.rings.abs().square().mean((0, 2)) - images.noise_power
    power = excess / square.clamp(min=1e-12) - mean.square()
    power = power.clamp(min=_LEAST_POWER * float(power.max().clamp(min=1e-12)))
    scale = n_angles * power.sqrt()
    covariance = disc_covariance(images.frequencies, n_orders, radius) * scale[:, None] * scale
    values, vectors_ = torch.linalg.eigh(covariance.double())
    kept = values > _RANK * values.max()
    root = (vectors_ * torch.where(kept, values, 0.0).sqrt()[:, None, :]).to(covariance)
    orders = torch.zeros(n_orders, len(mean), device=mean.device, dtype=mean.dtype)
    orders[0] = n_angles * mean
    return AveragePrior(orders, root, images.weights, n_angles)


def order_multiplicity(n_orders: int, like: Tensor) -> Tensor:
    """How many orders of a real image's ring each of 0 .. m - 1 stands for: 1, 2, 2, ..., 1."""
    twice = torch.full((n_orders,), 2.0, device=like.device, dtype=like.dtype)
    twice[0] = twice[-1] = 1.0
    return twice


def posterior_averages(sums: Tensor, counts: Tensor, prior: AveragePrior) -> Averages:
    """Class averages from the weighted sums of their images.

    Parameters
    ----------
    sums : (m, 2 s, k) and counts : (s, k) as `spr.orientation_search.Expectation` has them, a view for each class.
    """
    s = len(prior.weights)
    data = torch.complex(sums[:, :s], sums[:, s:]).permute(2, 0, 1)  # (k, m, s)
    precision = (counts.T * prior.weights / prior.n_angles)[:, None]  # (k, 1, s)
    pull = data * (prior.weights / prior.n_angles) - precision * prior.mean
    inner = torch.einsum("mir,kni,mis->kmrs", prior.root, precision, prior.root)
    inner = inner + torch.eye(inner.shape[-1], device=inner.device, dtype=inner.dtype)
    factor = torch.linalg.cholesky(inner)
    projected = torch.einsum("mir,kmi->kmr", prior.root.to(pull.dtype), pull)
    both = torch.stack((projected.real, projected.imag), -1)
    solved = torch.cholesky_solve(both, factor)
    orders = torch.einsum("mir,kmr->kmi", prior.root.to(pull.dtype), torch.view_as_complex(solved.contiguous()))
    orders = orders + prior.mean
    spread = torch.linalg.solve_triangular(factor, prior.root.mT.expand(len(data), -1, -1, -1), upper=False)
    variance = spread.square().sum(-2)  # (k, m, s)
    multiplicity = order_multiplicity(prior.mean.shape[0], counts)
    power = torch.einsum("m,kms->sk", multiplicity, orders.abs().square() + variance)
    power = power * (prior.weights / prior.n_angles)[:, None]
    gain = (both * solved).sum((-1, -2)) - 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    known = 2 * (data.real * prior.mean * prior.weights / prior.n_angles).sum(-1)
    known = known - (precision * prior.mean.square()).sum(-1)
    return Averages(orders, power, ((gain + known) * multiplicity).sum(-1) / 2)


def views_of_averages(averages: Averages, prior: AveragePrior) -> Views:
    """Class averages as the views that images are scored against; in-plane turns are left to the score."""
    weighted = averages.orders * prior.weights
    stacked = torch.cat((weighted.real, weighted.imag), 2).permute(1, 2, 0).contiguous()
    k = len(averages.orders)
    eye = torch.eye(3, device=weighted.device, dtype=prior.weights.dtype).expand(k, 3, 3)
    return Views(eye, stacked, averages.power, stacked.new_zeros(0, 3))


def as_images(sums: Tensor, counts: Tensor, images: RingImages) -> RingImages:
    """Classes as images: each the weighted sum of its members, with the transfer that gives it their weight.

    sums, counts : as for `posterior_averages`. images : those they were made of.
    """
    s = len(images.frequencies)
    orders = torch.complex(sums[:, :s], sums[:, s:]).permute(2, 1, 0)
    half = rings_from_orders(orders)
    rings = torch.cat((half, half.conj()), -1)
    transfer = counts.T.sqrt()[:, :, None].expand(rings.shape).contiguous()
    centres = images.centres.new_zeros(len(rings), 2)
    return RingImages(
        rings / transfer.clamp(min=1e-12), transfer, images.frequencies, images.weights, centres, images.centre_sigma
    )


def turned_orders(images: RingImages, index: Tensor, angles: Tensor, shifts: Tensor) -> Tensor:
    """Angular orders of images times their transfer, moved back by their shift and turned: (p, s, m) complex.

    Parameters
    ----------
    index : (p,) images. angles : (p,) degrees: the image seen at ``theta`` is the average at ``theta + angle``.
    shifts : (p, 2) of the particle, angstrom.
    """
    n_angles = images.rings.shape[-1]
    half = n_angles // 2
    phase = 2 * math.pi * torch.einsum("pi,sai->psa", shifts, images.ring_vectors()[:, :half])
    moved = (images.rings * images.transfer)[index][..., :half] * torch.polar(torch.ones_like(phase), phase)
    orders = torch.fft.fft(torch.cat((moved, moved.conj()), -1), dim=-1)[..., : half + 1]
    turn = torch.arange(half + 1, device=orders.device) * torch.deg2rad(angles)[:, None]
    return orders * torch.polar(torch.ones_like(turn), -turn)[:, None]


def as_sums(orders: Tensor) -> Tensor:
    """Orders (p, s, m) in the form of `spr.orientation_search.Expectation.sums`: (m, 2 s, p)."""
    return torch.cat((orders.real, orders.imag), 1).permute(2, 1, 0).contiguous()


def aligned_to(
    images: RingImages,
    index: Tensor,
    targets: Tensor,
    angles: Tensor,
    shifts: Tensor,
    *,
    centres: Tensor,
    shift_step: float,
    rounds: int = 7,
) -> tuple[Tensor, Tensor, Tensor]:
    """Angles and shifts off the grid: the best of small steps, halved whenever none is better.

    Parameters
    ----------
    index : (p,) images; targets : (p, m, s) the average each is held against; angles (p,) degrees and shifts (p, 2)
        angstrom from which it goes.
    centres : (p, 2) where the particle is expected. shift_step : angstrom, the first; of angles half a ring step.

    Returns
    -------
    Angles, shifts, and the (p,) part of the log likelihood that depends on them, nats.
    """
    turn = 180.0 / images.rings.shape[-1]
    unit = torch.tensor(
        [[0, 0, 0], [1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]],
        device=shifts.device,
        dtype=shifts.dtype,
    )
    twice = order_multiplicity(targets.shape[1], shifts)
    weighted = (targets.conj() * images.weights / images.rings.shape[-1]).transpose(1, 2) * twice
    scale = torch.ones_like(angles)
    score = torch.zeros_like(angles)
    for _ in range(rounds):
        tried = []
        for a, x, y in unit.tolist():
            turned = angles + a * turn * scale
            moved = shifts + scale[:, None] * shift_step * torch.tensor([x, y], device=shifts.device)
            orders = turned_orders(images, index, turned, moved)
            fit = (orders * weighted).sum((1, 2)).real
            tried.append(fit - (moved - centres).square().sum(1) / (2 * images.centre_sigma**2))
        score, choice = torch.stack(tried).max(0)
        step = unit[choice] * scale[:, None]
        angles, shifts = angles + step[:, 0] * turn, shifts + step[:, 1:] * shift_step
        scale = torch.where(choice == 0, scale / 2, scale)
    return angles, shifts, score
