"""How far two maps agree: Fourier shell correlation, its crossings, and what a mask adds to it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.data import InputError, Volume
from common.fourier import irfft3_origin, rfft3_origin, rfft_multiplicity, rfft_shell_indices, shell_sum


@dataclass(frozen=True)
class FSC:
    """A Fourier shell correlation.

    frequencies : (s,) of the shells, 1/angstrom, from 0 to Nyquist.
    correlation : (s,) in [-1, 1].
    counts : (s,) independent complex coefficients in each shell.
    """

    frequencies: Tensor
    correlation: Tensor
    counts: Tensor

    def resolution(self, threshold: float = 0.143) -> float:
        """Where the curve first falls below a threshold, angstrom; see :func:`resolution_at`."""
        return resolution_at(self, threshold)

    def table(self) -> list[tuple[object, ...]]:
        """Rows to write: names, then frequency (1/angstrom), correlation and number of coefficients of each shell."""
        columns = zip(self.frequencies.tolist(), self.correlation.tolist(), self.counts.tolist(), strict=True)
        rows = [(f"{frequency:.6f}", f"{value:.6f}", int(count)) for frequency, value, count in columns]
        return [("frequency_per_angstrom", "correlation", "coefficients"), *rows]


def resolution_at(fsc: FSC, threshold: float = 0.143) -> float:
    """The resolution of the first crossing, angstrom, interpolated linearly between shells.

    Parameters
    ----------
    fsc : the curve; the shell at frequency 0 is passed over.
    threshold : 0.143 for two half maps [1]_, 0.5 for a map against a reference.

    Returns
    -------
    Angstrom; the Nyquist resolution when the curve never falls below, infinity when it starts below.

    References
    ----------
    .. [1] Rosenthal, Henderson, J. Mol. Biol. 333, 721 (2003). doi:10.1016/j.jmb.2003.07.013
    """
    frequencies, correlation = fsc.frequencies.tolist(), fsc.correlation.tolist()
    for i in range(1, len(correlation)):
        if correlation[i] < threshold:
            if i == 1:
                return float("inf")
            part = (correlation[i - 1] - threshold) / (correlation[i - 1] - correlation[i])
            return float(1 / (frequencies[i - 1] + part * (frequencies[i] - frequencies[i - 1])))
    return float(1 / frequencies[-1])


def last_agreement(fsc: FSC, *, beyond: float, finest: float, threshold: float = 0.143) -> float:
    """Where two maps agree for the last time, angstrom: the shell after the last two neighbours above the threshold.

    For maps with gaps, as between a crystal's reflections or where the microscope transfers nothing, in which the first
    fall of the curve says nothing of the detail beyond.

    Parameters
    ----------
    beyond : 1/angstrom; shells up to there do not count.
    finest : angstrom, of the maps; returned when they agree to there.

    Returns
    -------
    Angstrom; NaN when they agree nowhere.
    """
    frequencies, correlation = fsc.frequencies, fsc.correlation
    known = (frequencies > beyond) & (frequencies <= 1 / finest)
    good = (correlation >= threshold) & known
    pairs = (good[1:] & good[:-1]).nonzero()[:, 0] + 1
    if not len(pairs):
        return float("nan")
    after = int(pairs[-1]) + 1
    return float(1 / frequencies[after]) if after < len(frequencies) and bool(known[after]) else finest


def _check_pair(a: Volume, b: Volume) -> None:
    if a.box_size != b.box_size or abs(a.voxel_size - b.voxel_size) > 1e-4 * a.voxel_size:
        raise InputError(
            f"the maps have boxes of {a.box_size} and {b.box_size} voxels of {a.voxel_size} and {b.voxel_size} "
            "angstrom, expected the same: resample one"
        )


def shell_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Correlation per shell of two real maps (..., n, n, n): (..., n // 2 + 1); 0 where either has no power."""
    n = a.shape[-1]
    shells = rfft_shell_indices(n, 3, device=a.device)
    weight = rfft_multiplicity(n, dtype=a.dtype, device=a.device)
    fa, fb = rfft3_origin(a), rfft3_origin(b)
    cross, aa, bb = (
        shell_sum(term * weight, shells, n // 2 + 1)
        for term in ((fa * fb.conj()).real, fa.abs().square(), fb.abs().square())
    )
    power = (aa * bb).sqrt()
    return torch.where(power > 0, cross / power.clamp(min=torch.finfo(power.dtype).tiny), 0.0)


def fourier_shell_correlation(a: Volume, b: Volume, mask: Tensor | None = None) -> FSC:
    """The Fourier shell correlation of two maps.

    Parameters
    ----------
    a, b : maps on the same grid.
    mask : (d, d, d) in [0, 1], applied to both, or None.

    Returns
    -------
    One value for each shell up to Nyquist.

    Raises
    ------
    InputError : the maps differ in box or voxel size.

    References
    ----------
    .. [1] Harauz, van Heel, "Exact filters for general geometry three dimensional reconstruction",
       Optik 73, 146 (1986).
    """
    _check_pair(a, b)
    n = a.box_size
    first, second = (a.values, b.values) if mask is None else (a.values * mask, b.values * mask)
    correlation = shell_correlation(first, second)
    shells = rfft_shell_indices(n, 3, device=first.device)
    weight = rfft_multiplicity(n, dtype=first.dtype, device=first.device).expand(shells.shape)
    frequencies = torch.arange(n // 2 + 1, dtype=first.dtype, device=first.device) / (n * a.voxel_size)
    return FSC(frequencies, correlation, shell_sum(weight, shells, n // 2 + 1) / 2)


def randomise_phases(values: Tensor, from_shell: int, *, generator: torch.Generator) -> Tensor:
    """A real (n, n, n) map whose phases from a shell outwards are random; amplitudes stay."""
    n = values.shape[-1]
    noise = torch.randn(values.shape, generator=generator, dtype=values.dtype, device=generator.device)
    random = rfft3_origin(noise.to(values.device))  # the phases of a real map's transform have the right symmetry
    transform = rfft3_origin(values)
    outside = rfft_shell_indices(n, 3, device=values.device) >= from_shell
    return irfft3_origin(torch.where(outside, torch.polar(transform.abs(), random.angle()), transform), n)


def corrected_shell_correlation(
    a: Volume, b: Volume, mask: Tensor, *, generator: torch.Generator, randomise_below: float = 0.8
) -> FSC:
    """The masked correlation without what the mask itself contributes.

    Parameters
    ----------
    a, b : half maps on the same grid.
    mask : (d, d, d) in [0, 1].
    generator : draws the random phases.
    randomise_below : phases are randomised from the shell where the unmasked curve first falls below this value.

    Returns
    -------
    ``(FSC_masked - FSC_random) / (1 - FSC_random)`` from two shells past that one, the masked curve before [1]_, eq. 4.

    References
    ----------
    .. [1] Chen et al., "High-resolution noise substitution to measure overfitting and validate resolution in 3D
       structure determination by single particle electron cryomicroscopy", Ultramicroscopy 135, 24 (2013).
       doi:10.1016/j.ultramic.2013.06.004
    """
    unmasked = fourier_shell_correlation(a, b)
    masked = fourier_shell_correlation(a, b, mask)
    below = (unmasked.correlation[1:] < randomise_below).nonzero().flatten()
    if not len(below):
        return masked
    start = int(below[0]) + 1
    random_a = randomise_phases(a.values, start, generator=generator)
    random_b = randomise_phases(b.values, start, generator=generator)
    random = shell_correlation(random_a * mask, random_b * mask).clamp(max=0.999)
    corrected = (masked.correlation - random) / (1 - random)
    late = torch.arange(len(corrected), device=corrected.device) >= start + 2
    return FSC(masked.frequencies, torch.where(late, corrected, masked.correlation), masked.counts)
