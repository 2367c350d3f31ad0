"""Which element each atom is, by its intensity: a mixture of as many normal distributions as there are elements."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from ase.data import atomic_numbers
from torch import Tensor

from common.data import InputError
from common.least_squares import least_squares

_ROUNDS = 200


@dataclass(frozen=True)
class Species:
    """symbols : n, the likeliest. probabilities : (n, k), columns in the order of ``elements``. elements : k, lightest
    first. heights : (k,) mean of each. spreads : (k,) standard deviation. corrected : (n,) heights without trend."""

    symbols: tuple[str, ...]
    probabilities: Tensor
    elements: tuple[str, ...]
    heights: Tensor
    spreads: Tensor
    corrected: Tensor


def assign_species(
    heights: Tensor, elements: tuple[str, ...], *, positions: Tensor | None = None, sigmas: Tensor | None = None
) -> Species:
    """Tell elements apart by the heights of their atoms.

    Parameters
    ----------
    heights : (n,) positive; heavier elements are higher.
    elements : chemical symbols that are there, at most four.
    positions : (n, 3) angstrom; heights are then corrected for a smooth trend with depth (along x, y, z and outward),
        as damping and tilt leave it: a quadratic polynomial, the same factor for all elements.
    sigmas : (n,) of the heights; an atom known poorly leans to the commoner element.

    Raises
    ------
    InputError : an unknown element, more than four, or fewer atoms than elements.

    Notes
    -----
    Expectation-maximisation from heights as Z^1.7 has them; the trend is fitted in every round to what is left.
    """
    unknown = [e for e in elements if atomic_numbers.get(e, 0) < 1]
    if unknown or not elements or len(elements) > 4 or len(set(elements)) < len(elements):
        raise InputError(f"the elements are {', '.join(elements) or 'none'}, expected one to four chemical symbols")
    if len(heights) < len(elements):
        raise InputError(f"{len(heights)} atoms of {len(elements)} elements, expected at least as many atoms")
    order = tuple(sorted(elements, key=lambda e: atomic_numbers[e]))
    h, k = heights.double(), len(order)
    trend = torch.ones_like(h)
    noise = torch.zeros_like(h) if sigmas is None else sigmas.double() ** 2
    expected = h.new_tensor([float(atomic_numbers[e]) ** 1.7 for e in order])
    middle, spread, share = (
        expected * _best_scale(h, expected),
        expected * 0.0 + 0.15 * h.median(),
        expected * 0 + 1 / k,
    )
    weights = torch.ones(len(h), k, dtype=h.dtype, device=h.device)
    for _ in range(_ROUNDS):
        level = h / trend
        variance = spread**2 + noise[:, None]
        logs = torch.log(share) - (level[:, None] - middle) ** 2 / (2 * variance) - torch.log(variance) / 2
        new = torch.softmax(logs, 1)
        change, weights = float((new - weights).abs().max()), new
        total = weights.sum(0).clamp(min=1e-9)
        middle = (weights * level[:, None]).sum(0) / total
        deviation = (weights * ((level[:, None] - middle) ** 2 - noise[:, None]).clamp(min=0)).sum(0) / total
        pooled = (deviation * total / middle**2).sum() / total.sum()  # rare elements borrow the spread of all
        spread = ((deviation * total + 5 * pooled * middle**2) / (total + 5)).sqrt().clamp(min=1e-3 * float(h.median()))
        share = total / total.sum()
        if positions is not None and len(h) > 60:
            trend = _trend(h / (weights @ middle), positions.double())
        if change < 1e-6:
            break
    likeliest = weights.argmax(1)
    return Species(tuple(order[i] for i in likeliest.tolist()), weights, order, middle, spread, h / trend)


def _best_scale(heights: Tensor, expected: Tensor) -> float:
    """The factor on the expected heights at which each atom is nearest to one of them."""
    middle = float(heights.median())
    scales = torch.exp(torch.linspace(math.log(0.3), math.log(3.0), 200, dtype=heights.dtype))
    centres = [middle / float(e) * float(s) for e in expected for s in scales]
    trial = heights.new_tensor(centres)[:, None] * expected
    away = (torch.log(heights.clamp(min=1e-9))[None, :, None] - torch.log(trial)[:, None]).abs().amin(2).clamp(max=0.5)
    return float(centres[int(away.mean(1).argmin())])


def _trend(ratio: Tensor, positions: Tensor) -> Tensor:
    """A quadratic polynomial of the place, fitted to (n,) ratios, of mean 1."""
    p = positions - positions.mean(0)
    p = p / p.std().clamp(min=1e-9)
    columns = torch.cat((torch.ones_like(p[:, :1]), p, p**2), 1)
    kept = (ratio - ratio.median()).abs() < 0.3
    fitted = least_squares(columns[kept], ratio[kept, None])
    found = (columns @ fitted)[:, 0].clamp(0.6, 1.6)
    return found / found.mean()
