"""Neighbours, bond lengths, and the pair distribution function of a finite particle."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.fft
from ase import Atoms
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

from common.atoms.geometry import (
    Floats,
    Integers,
    finite_positions,
    first_shell_cutoff,
    pair_distance_histogram,
)
from common.data import InputError

_VOXELS = 72  # along the longest side of the particle


def bonded_pairs(atoms: Atoms, *, cutoff: float | None = None) -> Integers:
    """Pairs of neighbouring atoms, each both ways.

    Parameters
    ----------
    atoms : n atoms, not periodic.
    cutoff : angstrom, > 0; None: the first minimum of the pair distances (`first_shell_cutoff`).

    Returns
    -------
    (m, 2) indices.

    Raises
    ------
    InputError : the cutoff is not positive, or an atom is not at a finite place.
    """
    if cutoff is not None and not cutoff > 0:
        raise InputError(f"the cutoff is {cutoff}, expected a positive number of angstrom")
    positions = finite_positions(atoms, "the atom list", 0)
    if len(positions) < 2:
        return np.zeros((0, 2), dtype=np.int64)
    reach = first_shell_cutoff(atoms) if cutoff is None else cutoff
    pairs = cKDTree(positions).query_pairs(reach, output_type="ndarray").astype(np.int64)
    return np.concatenate((pairs, pairs[:, ::-1]))


def mean_bond_lengths(atoms: Atoms, bonds: Integers) -> Floats:
    """Mean length (n,), angstrom, of each atom's bonds (`bonded_pairs`); NaN for an atom without any."""
    positions = atoms.get_positions()
    lengths = np.linalg.norm(positions[bonds[:, 0]] - positions[bonds[:, 1]], axis=1)
    count = np.bincount(bonds[:, 0], minlength=len(atoms))
    total = np.bincount(bonds[:, 0], lengths, len(atoms))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


@dataclass(frozen=True)
class PairDistribution:
    """distances : (b,) angstrom, middles of the bins. values : (b,) g(r), 1 where atoms know nothing of each other."""

    distances: Floats
    values: Floats

    def table(self) -> list[tuple[object, ...]]:
        """Rows to write: names, then distance (angstrom) and g(r) of each bin."""
        rows = [(f"{r:.4f}", f"{g:.6f}") for r, g in zip(self.distances, self.values, strict=True)]
        return [("distance_angstrom", "g"), *rows]


def pair_distribution(atoms: Atoms, *, bin_width: float = 0.05, longest: float = 12.0) -> PairDistribution:
    """Pair distribution function g(r) of a particle, normalised for its size and shape.

    Parameters
    ----------
    atoms : n >= 4 atoms, not periodic.
    bin_width, longest : angstrom, > 0.

    Raises
    ------
    InputError : fewer than 4 atoms, an atom not at a finite place, or a width or length that is not positive.

    Notes
    -----
    Pairs in each shell over those of a body of the same shape and mean density (its autocorrelation, by FFT of a voxel
    mask of the atoms), so that g goes to 1 at any distance within the particle and not to the fall-off of a sphere.
    """
    positions = finite_positions(atoms, "the atom list", 4)
    edges, counts = pair_distance_histogram(atoms, bin_width=bin_width, longest=longest)
    twelfth = cKDTree(positions).query(positions, k=min(13, len(positions)))[0][:, -1]
    spacing = float(np.quantile(twelfth, 0.1))  # of close packing; in open structures what closes their holes
    expected = _pairs_of_body(positions, spacing, edges)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.where(expected > 0, counts / expected, 0.0)
    return PairDistribution((edges[1:] + edges[:-1]) / 2, values)


def _pairs_of_body(positions: Floats, spacing: float, edges: Floats) -> Floats:
    """Expected pairs in each bin if the n atoms were spread evenly over the body they fill."""
    n = len(positions)
    step = max(float(np.ptp(positions, axis=0).max()) / _VOXELS, spacing / 6)
    reach = 0.75 * spacing  # covers the holes between close-packed atoms
    low = positions.min(0) - reach - 2 * step
    shape = np.ceil((positions.max(0) + reach + 2 * step - low) / step).astype(int) + 1
    axes = [low[k] + step * np.arange(shape[k]) for k in range(3)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    filled = np.isfinite(cKDTree(positions).query(grid, distance_upper_bound=reach)[0])
    # back to half of the way to the next layer; measured on gases and crystals, g far out is 1 within 4 per cent
    depth = distance_transform_edt(filled) - 0.5 - 0.22 * spacing / step
    body = np.clip(depth + 0.5, 0.0, 1.0)  # voxels at its surface are partly filled
    padded = [scipy.fft.next_fast_len(int(2 * k), real=True) for k in shape]
    power = np.abs(scipy.fft.rfftn(body.astype(np.float32), padded)) ** 2
    overlap = np.maximum(scipy.fft.irfftn(power, padded), 0.0)
    lags = [scipy.fft.fftfreq(k, 1 / k) * step for k in padded]
    radius = np.sqrt(lags[0][:, None, None] ** 2 + lags[1][:, None] ** 2 + lags[2] ** 2).ravel()
    # the autocorrelation falls smoothly with r: its mean over shells two voxels wide, between them a straight line
    width = 2 * step
    shells = (radius / width).astype(int)
    mean = np.bincount(shells, overlap.ravel()) / np.maximum(np.bincount(shells), 1)
    at = np.bincount(shells, radius) / np.maximum(np.bincount(shells), 1)
    r = (edges[1:] + edges[:-1]) / 2
    share = np.interp(r, np.concatenate(([0.0], at[1:])), np.concatenate(([float((body**2).sum())], mean[1:])))
    volume = float(body.sum()) * step**3
    shell = 4 / 3 * math.pi * (edges[1:] ** 3 - edges[:-1] ** 3)
    return np.asarray(n * (n - 1) / 2 * shell * share * step**3 / volume**2)
