"""Atoms from a map, without knowing how many there are or how large the particle is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms
from ase.data import atomic_numbers, covalent_radii
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from scipy.special import ndtr

from common.atoms.map_model import (
    BandTransform,
    MapModel,
    band_transform,
    matched_residual,
    noise_at_atoms,
    refine,
    synthesize,
)
from common.data import InputError, Volume

Floats = NDArray[np.float64]
_BOND = 1.35 / 0.8  # reach of a bond in units of the minimum distance
_LEAST_GAP = 0.05  # lowest atom above highest other peak, of the median height
_TOLERATED_ERRORS = 0.3  # expected missed and false atoms
_LEAST = 4  # atoms; fewer are no particle


@dataclass(frozen=True)
class TracingSettings:
    """How atoms are found in a map.

    element : chemical symbol of all atoms; None: "X", distances come from the map.
    resolution : angstrom, finest spacing used; None: all the map holds.
    minimum_distance : angstrom, no two atoms are closer; None: 0.8 x the bond length of the element, or of the map.
    threshold : lowest height of an atom relative to the median atom, in (0, 1); None: from the map.
    cycles : most rounds of fit, subtract and look again, >= 1.
    """

    element: str | None = None
    resolution: float | None = None
    minimum_distance: float | None = None
    threshold: float | None = None
    cycles: int = 12

    def __post_init__(self) -> None:
        if self.element is not None and atomic_numbers.get(self.element, 0) < 1:
            raise InputError(f"the element is {self.element!r}, expected a chemical symbol such as Au")
        for name in ("resolution", "minimum_distance"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InputError(f"the {name.replace('_', ' ')} is {value}, expected a positive number of angstrom")
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise InputError(f"the threshold is {self.threshold}, expected a fraction of the median height in (0, 1)")
        if self.cycles < 1:
            raise InputError(f"the number of cycles is {self.cycles}, expected at least 1")


@dataclass(frozen=True)
class TraceResult:
    """Atoms and why to believe them. Heights are relative to the median atom.

    atoms : per-atom arrays "peak_height" (relative) and "score" (height / its noise).
    threshold : height that separates atoms from background.
    rejected_heights : (m,) descending, of the peaks that were not taken.
    gap : lowest accepted minus highest rejected height.
    height_spread : robust standard deviation of the accepted heights.
    noise : standard deviation of a height from noise alone.
    expected_errors : missed and false atoms to be expected from how the heights of atoms and noise overlap.
    determined : the heights fall into two groups; otherwise the atoms are a guess.
    reason : one line, why it is not determined; empty when it is.
    """

    atoms: Atoms
    threshold: float
    rejected_heights: Floats
    gap: float
    height_spread: float
    noise: float
    expected_errors: float
    determined: bool
    reason: str


def trace(volume: Volume, settings: TracingSettings | None = None) -> Atoms:
    """Find the atoms of a map.

    Parameters
    ----------
    volume : values (d, d, d); atoms are positive. Mean and scale do not matter.
    settings : see `TracingSettings`.

    Returns
    -------
    Atoms at (x, y, z) angstrom from the centre voxel ``d // 2``, highest first, with arrays "peak_height" (relative to
    the median atom) and "score" (height over noise). ``info`` holds "trace_determined", "trace_reason" (why not, one
    line), "trace_threshold" and "trace_gap".

    Raises
    ------
    InputError : the map is constant or not finite, or holds no peaks that stand out at all.

    Notes
    -----
    See `find_atoms`, which also returns what was rejected.
    """
    result = find_atoms(volume, settings)
    atoms = result.atoms.copy()
    atoms.info.update(
        trace_determined=result.determined,
        trace_threshold=result.threshold,
        trace_gap=result.gap,
        trace_reason=result.reason,
    )
    return atoms


def find_atoms(volume: Volume, settings: TracingSettings | None = None) -> TraceResult:
    """Find the atoms of a map and say how they stand out from what is not an atom.

    Parameters
    ----------
    volume : values (d, d, d); atoms are positive. Mean and scale do not matter.
    settings : see `TracingSettings`.

    Returns
    -------
    See `TraceResult`.

    Raises
    ------
    InputError : the map is constant or not finite, or holds no peaks that stand out at all.

    Notes
    -----
    Highest peaks first; then, again and again: all positions and heights are fitted together to the map with the atom's
    profile and the noise measured from it (`map_model`), the atoms are subtracted, what is left is searched with the
    matched filter, new peaks join, and those that end low or apart from the particle go. Ripples around atoms vanish
    with the atoms, so that a false peak loses its height in the joint fit. The threshold is where the expected number
    of missed and of false atoms is least, moved into the widest gap nearby.
    """
    settings = settings or TracingSettings()
    if not bool(torch.isfinite(volume.values).all()):
        raise InputError("the volume holds NaN or infinite values, expected finite numbers")
    if not float(volume.values.double().std()) > 0:
        raise InputError("the volume is constant, expected a map with atoms")
    band = band_transform(volume, settings.resolution)
    model = _first_atoms(band)
    shortest = _minimum_distance(model, settings)
    model = _keep(model, _apart(model.positions, model.heights, shortest))
    background, sigma, split = np.empty(0), 0.0, _Split(0.5, 0.0)
    settled = False
    for cycle in range(settings.cycles):
        model, _ = _pruned(refine(band, model, 3), 0.7 * shortest, 0.0)
        coefficients, sigma = matched_residual(band, model)
        sigma *= noise_at_atoms(band, coefficients, model)
        peaks, heights = _peaks(band, coefficients, shortest, model.positions)
        beside = _neighbours(peaks, model.positions, shortest) >= 2
        split = _split(model.heights, heights, sigma, float(beside.mean()) if len(beside) else 0.0, settings.threshold)
        settled = settled or cycle >= settings.cycles // 2
        low = split.threshold if settled else max(0.25, min(0.6 * split.threshold + 0.4 * 3 * sigma, split.threshold))
        before = len(model.heights)
        model, dropped = _pruned(model, 0.7 * shortest, low, neighbours_within=_BOND * shortest)
        fresh = (
            beside & (heights > low) & (np.arange(len(heights)) < before)
        )  # at most twice as many atoms, highest first
        background = np.concatenate([heights[~fresh], dropped])
        quiet = not fresh.any() and len(model.heights) == before
        if settled and quiet:
            break
        settled = settled or quiet
        # in noise alone thousands of peaks would be fitted for nothing
        hopeless = cycle >= 1 and split.expected_errors > 0.25 * len(model.heights)
        if hopeless or len(model.heights) + fresh.sum() < _LEAST:
            break
        if cycle < settings.cycles - 1:
            model = MapModel(
                np.concatenate([model.positions, peaks[fresh]]),
                np.concatenate([model.heights, heights[fresh]]),
                model.transfer,
                model.noise,
            )
    return _result(model, background, sigma, split, settings)


@dataclass(frozen=True)
class _Split:
    threshold: float
    expected_errors: float  # missed and false atoms


def _split(atoms: Floats, background: Floats, sigma: float, beside: float, fixed: float | None) -> _Split:
    """Where to part atoms from background.

    Maxima of a Gaussian field above u standard deviations number N0 (u^2 - 1) exp(-u^2 / 2) (Adler, The Geometry of
    Random Fields, 1981, theorem 6.3.1), N0 from the count above 2.5; the fraction ``beside`` of them lies where an atom
    could be. Heights of atoms are taken as normal.
    """
    middle = float(np.median(atoms))
    spread = max(1.4826 * float(np.median(np.abs(atoms - middle))), sigma, 0.03)
    t = np.linspace(0.3, 0.95, 261) * middle
    u0 = 2.5
    n0 = max(float((background > u0 * sigma).sum()), 1.0) / ((u0**2 - 1) * math.exp(-(u0**2) / 2))
    u = np.maximum(t / max(sigma, 1e-9), math.sqrt(3))
    false = beside * n0 * (u**2 - 1) * np.exp(-(u**2) / 2)
    missed = len(atoms) * ndtr((t - middle) / spread)
    best = int(np.argmin(false + missed))
    if fixed is not None:
        best = int(np.argmin(np.abs(t - fixed * middle)))
        return _Split(fixed * middle, float((false + missed)[best]))
    good = np.flatnonzero(false + missed <= (false + missed)[best] + 0.05)
    low, high = float(t[good[0]]), float(t[good[-1]])
    pooled = np.concatenate([atoms, background])
    edges = np.concatenate([[low], np.sort(pooled[(pooled > low) & (pooled < high)]), [high]])
    widest = int(np.argmax(np.diff(edges)))
    return _Split(float(edges[widest] + edges[widest + 1]) / 2, float((false + missed)[best]))


def _result(model: MapModel, background: Floats, sigma: float, split: _Split, settings: TracingSettings) -> TraceResult:
    order = np.argsort(-model.heights, kind="stable")
    heights, rejected = model.heights[order], np.sort(background)[::-1]
    n = len(heights)
    atoms = Atoms(symbols=[settings.element or "X"] * n, positions=model.positions[order])
    atoms.set_array("peak_height", heights)
    atoms.set_array("score", heights / max(sigma, 1e-12))
    gap = float((heights[-1] if n else 0.0) - (rejected[0] if len(rejected) else 0.0))
    spread = 1.4826 * float(np.median(np.abs(heights - np.median(heights)))) if n else 0.0
    reason = ""
    if n < _LEAST:
        reason = f"{n} atoms stand out, fewer than {_LEAST}"
    elif split.expected_errors > _TOLERATED_ERRORS:
        reason = (
            f"peaks of atoms and of noise overlap: about {split.expected_errors:.1f} missed or false among {n} atoms "
            f"(noise of a height {sigma:.2f} of the median atom)"
        )
    elif gap < _LEAST_GAP:
        reason = f"heights show no gap between atoms and background ({gap:.2f} of the median, expected {_LEAST_GAP})"
    return TraceResult(atoms, split.threshold, rejected, gap, spread, sigma, split.expected_errors, not reason, reason)


def _first_atoms(band: BandTransform) -> MapModel:
    """The highest peaks of the map itself."""
    flat = torch.ones(band.reach + 1, dtype=torch.float64, device=band.weight.device)
    positions, heights = _peaks(band, band.values, 0.8 * max(band.finest, 1.2), np.empty((0, 3)))
    if len(heights) < 4:
        raise InputError(f"the volume holds {len(heights)} peaks, expected at least 4 atoms")
    top = float(np.mean(heights[: min(10, len(heights))]))
    keep = heights > 0.6 * top
    return MapModel(positions[keep], heights[keep] / np.median(heights[keep]), flat, flat)


def _minimum_distance(model: MapModel, settings: TracingSettings) -> float:
    if settings.minimum_distance is not None:
        return settings.minimum_distance
    if settings.element is not None:
        return 0.8 * 2 * float(covalent_radii[atomic_numbers[settings.element]])
    nearest = cKDTree(model.positions).query(model.positions, k=2)[0][:, 1]
    return 0.8 * float(np.median(nearest))


def _neighbours(positions: Floats, atoms: Floats, shortest: float) -> NDArray[np.int64]:
    """How many atoms are within a bond's length of each position; a bond is shortest / 0.8, give or take 35 %."""
    if not len(positions) or not len(atoms):
        return np.zeros(len(positions), dtype=np.int64)
    return np.asarray(cKDTree(atoms).query_ball_point(positions, _BOND * shortest, return_length=True), dtype=np.int64)


def _pruned(
    model: MapModel, distance: float, low: float, *, neighbours_within: float | None = None
) -> tuple[MapModel, Floats]:
    """Without atoms that run into a higher one, are low, or are apart from the particle; heights of the latter two."""
    model = _keep(model, _apart(model.positions, model.heights, distance))
    high = model.heights > low
    dropped = model.heights[~high]
    model = _keep(model, high)
    if neighbours_within is None or len(model.heights) < 2:
        return model, dropped
    pairs = cKDTree(model.positions).query_pairs(neighbours_within, output_type="ndarray")
    n = len(model.heights)
    label = connected_components(coo_matrix((np.ones(len(pairs)), pairs.T), shape=(n, n)), directed=False)[1]
    size = np.bincount(label)
    particle = size[label] >= max(2, 0.1 * size.max())
    return _keep(model, particle), np.concatenate([dropped, model.heights[~particle]])


def _keep(model: MapModel, keep: NDArray[np.bool_] | NDArray[np.int64]) -> MapModel:
    return MapModel(model.positions[keep], model.heights[keep], model.transfer, model.noise)


def _apart(positions: Floats, heights: Floats, distance: float) -> NDArray[np.int64]:
    """Indices, highest first, of those that have no higher one nearer than ``distance``."""
    order = np.argsort(-heights, kind="stable")
    alive = np.ones(len(order), dtype=bool)
    near = cKDTree(positions).query_ball_point(positions, distance) if len(order) else []
    chosen = []
    for index in order:
        if alive[index]:
            chosen.append(index)
            alive[near[index]] = False
    return np.asarray(chosen, dtype=np.int64)


def _peaks(band: BandTransform, values: torch.Tensor, distance: float, taken: Floats) -> tuple[Floats, Floats]:
    """Positive maxima, highest first, at least ``distance`` from each other and from those taken."""
    fine, spacing = synthesize(band, values, min(0.35, band.finest / 5))
    d = fine.shape[0]
    inner = fine[1:-1, 1:-1, 1:-1]
    top = (inner == maximum_filter(fine, size=3)[1:-1, 1:-1, 1:-1]) & (inner > 0)
    index = np.argwhere(top) + 1
    place = index.astype(np.float64)
    height = fine[tuple(index.T)]
    for axis in range(3):
        ahead, behind = index.copy(), index.copy()
        ahead[:, axis] += 1
        behind[:, axis] -= 1
        right, left = fine[tuple(ahead.T)], fine[tuple(behind.T)]
        curve = np.minimum(left + right - 2 * fine[tuple(index.T)], -1e-300)
        offset = np.clip(0.5 * (left - right) / curve, -0.5, 0.5)
        place[:, axis] += offset
        height = height - 0.25 * (left - right) * offset
    positions = (place[:, ::-1] - d // 2) * spacing
    if len(taken) and len(positions):
        free = cKDTree(taken).query(positions)[0] >= distance
        positions, height = positions[free], height[free]
    chosen = _apart(positions, height, distance)
    return positions[chosen], height[chosen]
