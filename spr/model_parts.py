"""A model of atoms for some of its images, and models of the same atoms for different images put together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from common.atoms.model import AtomicModel

_OF_IMAGES = ("rotations", "shifts", "gains", "defocus")
_SCORES = ("weights", "log_likelihood", "expected", "correlation")


def select_images(model: AtomicModel, rows: Tensor) -> AtomicModel:
    """The model with only the images ``rows``."""
    own = {name: getattr(model.parameters, name)[rows] for name in _OF_IMAGES}
    scores: dict[str, Any] = {name: getattr(model, name)[rows] for name in _SCORES}
    return replace(model, parameters=replace(model.parameters, **own), **scores)


def all_but(rows: Tensor, count: int) -> Tensor:
    """Those of 0 .. count - 1 that are not among ``rows``, in order."""
    return torch.ones(count, dtype=torch.bool, device=rows.device).index_fill(0, rows, False).nonzero()[:, 0]


def merged(first: AtomicModel, rows: Tensor, second: AtomicModel, other_rows: Tensor) -> AtomicModel:
    """The atoms of ``first`` with the images of both.

    Parameters
    ----------
    rows, other_rows : where the images of ``first`` and of ``second`` go; together 0 .. n - 1, each once.
    """
    order = torch.argsort(torch.cat((rows, other_rows)))

    def both(a: Tensor, b: Tensor) -> Tensor:
        return torch.cat((a, b.to(a)))[order]

    own = {n: both(getattr(first.parameters, n), getattr(second.parameters, n)) for n in _OF_IMAGES}
    scores: dict[str, Any] = {n: both(getattr(first, n), getattr(second, n)) for n in _SCORES}
    return replace(first, parameters=replace(first.parameters, **own), **scores)
