"""Graphene sheets behind and before the particles: their lattices, and their image, found beside the particles.

A sheet images as a few plane waves. Each is taken off with its own amplitude and phase, which vary slowly over the
field and are learned where no particle lies; nothing else at those frequencies is touched, unlike by a notch, which
takes the particle's own reflections (Pt 111 at 2.26 angstrom beside graphene at 2.13) with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from common.least_squares import least_squares
from spr.windowed_spectra import taper

SPACING = 2.13  # angstrom, of the first reflections of graphene (lattice constant 2.46)
ORDERS = (((1, 0), (0, 1), (-1, 1)), ((1, 1), (-1, 2), (-2, 1)), ((2, 0), (0, 2), (-2, 2)))  # one of each pair +-g


@dataclass(frozen=True)
class GrapheneSettings:
    """How graphene is looked for and modelled.

    spacing_tolerance : fraction by which the spacing may be off 2.13 angstrom (strain and pixel size).
    significance : power of a reflection over its surroundings in the mean frame.
    most_sheets : lattices looked for, 0 to leave the background as it is.
    smoothing : angstrom, rms width over which amplitude and phase are averaged.
    orders : rings of reflections that are modelled, 1 to 3.
    """

    spacing_tolerance: float = 0.06
    significance: float = 25.0
    most_sheets: int = 4
    smoothing: float = 20.0
    orders: int = 3


@dataclass(frozen=True)
class Lattice:
    """One sheet. reciprocal : (2, 2), rows g1 and g2 (x, y) 60 degrees apart, 1/angstrom. strength : power / noise."""

    reciprocal: Tensor
    strength: float

    @property
    def spacing(self) -> float:
        """Mean distance of the first lattice lines, angstrom; of an unstrained sheet 2.13."""
        return 1 / float(self.reflections(1).norm(dim=1).mean())

    @property
    def angle(self) -> float:
        """Direction of a first reflection from x towards y, degrees in [0, 60)."""
        return math.degrees(math.atan2(float(self.reciprocal[0, 1]), float(self.reciprocal[0, 0]))) % 60.0

    @property
    def strain(self) -> float:
        """Largest minus smallest principal strain: 0 for a regular hexagon."""
        ideal = torch.tensor([[1.0, 0.0], [0.5, math.sqrt(0.75)]], dtype=torch.float64)
        values = torch.linalg.svdvals(torch.linalg.solve(ideal, self.reciprocal.double()))
        return float((values[0] - values[1]) / values.mean())

    def reflections(self, orders: int) -> Tensor:
        """(3 orders, 2) of (x, y), 1/angstrom, one of each pair, ring by ring."""
        index = torch.tensor(ORDERS[:orders], dtype=self.reciprocal.dtype).reshape(-1, 2)
        return index @ self.reciprocal


@dataclass(frozen=True)
class Waves:
    """The image of all sheets as a linear model.

    frequencies : (m, 2) of (x, y), 1/angstrom. group : (m,) sheet and ring that a wave belongs to.
    basis : (m, 2, y x) real and minus imaginary part of every wave over the frame, mean intensity units.
    """

    frequencies: Tensor
    group: Tensor
    basis: Tensor

    def images(self, displacements: Tensor, scales: Tensor) -> Tensor:
        """(n, y x) for frames moved by (n, 2) angstrom, each group at its scale (n, groups) of the mean."""
        angle = -2 * math.pi * displacements.to(self.frequencies) @ self.frequencies.T
        scale = scales.to(self.frequencies)[:, self.group]
        parts = torch.stack((scale * angle.cos(), scale * angle.sin()), 2)
        return parts.flatten(1) @ self.basis.flatten(0, 1)


def coordinates(shape: tuple[int, int], pixel_size: float) -> tuple[Tensor, Tensor]:
    """(x,) and (y,) of the pixels, angstrom from the first pixel's centre."""
    return torch.arange(shape[1]) * pixel_size, torch.arange(shape[0]) * pixel_size


def fourier_coefficients(image: Tensor, pixel_size: float, k_x: Tensor, k_y: Tensor) -> Tensor:
    """``sum image exp(-2 pi i k x)`` on the grid of k_y (a,) and k_x (b,), 1/angstrom: complex (a, b)."""
    x, y = coordinates((image.shape[0], image.shape[1]), pixel_size)
    one = torch.ones(1)
    along_y = torch.polar(one, -2 * math.pi * k_y[:, None] * y)
    along_x = torch.polar(one, -2 * math.pi * k_x[:, None] * x)
    return along_y @ image.to(along_y.dtype) @ along_x.T


def find_lattices(mean: Tensor, pixel_size: float, settings: GrapheneSettings | None = None) -> tuple[Lattice, ...]:
    """Graphene lattices in the mean of aligned frames, the strongest first.

    Parameters
    ----------
    mean : (y, x).
    pixel_size : angstrom; below 1.0, or the first reflections lie beyond Nyquist's frequency.

    Returns
    -------
    Lattices whose three first reflections all stand out; none where there is no graphene.

    Notes
    -----
    Every local maximum of the power near 1 / 2.13 angstrom proposes a lattice; its rivals are judged by the weakest of
    the first reflections and the sum of all. Reciprocal vectors then follow by least squares from the exact maxima.
    """
    settings = settings or GrapheneSettings()
    if 0.5 / pixel_size < (1 + settings.spacing_tolerance) / SPACING:
        return ()
    height, width = mean.shape
    window = taper((height, width), 0.2)
    flat = (mean - mean.mean()) * window
    size = (2 * height, 2 * width)
    power = torch.fft.fft2(flat, s=size).abs() ** 2
    k_y, k_x = torch.fft.fftfreq(size[0], pixel_size), torch.fft.fftfreq(size[1], pixel_size)
    k = torch.sqrt(k_y[:, None] ** 2 + k_x**2)
    low, high = ((1 + sign * settings.spacing_tolerance) / SPACING for sign in (-1, 1))
    ring = (k > low - 0.04) & (k < high + 0.04)
    noise = float(power[ring].median()) / math.log(2)
    highest = torch.nn.functional.max_pool2d(power[None], 5, 1, 2)[0]
    starts = (power == highest) & (power > settings.significance * noise) & (k > low) & (k < high) & (k_x >= 0)
    rows, columns = starts.nonzero(as_tuple=True)
    order = power[rows, columns].argsort(descending=True)[:24]
    peaks = torch.stack((k_x[columns], k_y[rows]), 1)[order]
    found: list[Lattice] = []
    taken = torch.zeros(0, 2)
    for peak in peaks:
        if len(found) == settings.most_sheets:
            break
        if len(taken) and float(torch.minimum((taken - peak).norm(dim=1), (taken + peak).norm(dim=1)).min()) < 2 / (
            min(height, width) * pixel_size
        ):
            continue
        lattice = _lattice_from(flat, pixel_size, peak, noise, settings)
        if lattice is not None:
            found.append(lattice)
            taken = torch.cat((taken, lattice.reflections(1)))
    return tuple(found)


def _lattice_from(
    flat: Tensor, pixel_size: float, peak: Tensor, noise: float, settings: GrapheneSettings
) -> Lattice | None:
    """The lattice that a first reflection proposes, where its other reflections are there too."""
    turn = math.radians(60)
    matrix = torch.tensor([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    lattice = Lattice(torch.stack((peak, peak @ matrix)), 0.0)
    reach = max(0.5 * settings.spacing_tolerance / SPACING, 1.0 / (min(flat.shape) * pixel_size))
    for narrowing in (1.0, 0.2):
        expected = lattice.reflections(1)
        places, powers = zip(*(_peak_near(flat, pixel_size, g, reach * narrowing) for g in expected), strict=True)
        if min(powers) < settings.significance * noise:
            return None
        index = torch.tensor(ORDERS[0], dtype=torch.float32)
        lattice = Lattice(least_squares(index, torch.stack(places)), float(sum(powers)) / (3 * noise))
    misfit = (lattice.reflections(1) - torch.stack(places)).norm(dim=1).max()
    if float(misfit) > 0.5 / (min(flat.shape) * pixel_size) or lattice.strain > settings.spacing_tolerance:
        return None
    return lattice


def _peak_near(flat: Tensor, pixel_size: float, g: Tensor, reach: float) -> tuple[Tensor, float]:
    """Where the power is highest within ``reach`` (1/angstrom) of g, and how high."""
    place, power = g, 0.0
    steps = torch.linspace(-1, 1, 21)
    for _ in range(3):
        found = fourier_coefficients(flat, pixel_size, place[0] + reach * steps, place[1] + reach * steps).abs() ** 2
        best = int(found.argmax())
        place = place + reach * torch.stack((steps[best % 21], steps[best // 21]))
        power, reach = float(found.max()), reach * 0.15
    return place, power


def model_waves(
    mean: Tensor,
    free: Tensor,
    lattices: tuple[Lattice, ...],
    pixel_size: float,
    settings: GrapheneSettings | None = None,
) -> Waves:
    """Amplitude and phase of every reflection over the field, from where no particle lies.

    Parameters
    ----------
    mean : (y, x), mean of aligned frames.
    free : (y, x) in [0, 1], 0 where a particle lies.
    lattices : `find_lattices`.

    Returns
    -------
    Waves. Reflections beyond 0.9 of Nyquist's frequency are left out.

    Notes
    -----
    Demodulation and normalised convolution: ``A(x) = smooth(free mean exp(-2 pi i g x)) / smooth(free)``; three rounds
    in which each wave is learned from what the others leave, since a mask makes them overlap.
    """
    settings = settings or GrapheneSettings()
    height, width = mean.shape
    frequencies, groups = [], []
    for sheet, lattice in enumerate(lattices):
        for ring in range(settings.orders):
            for g in lattice.reflections(settings.orders)[3 * ring : 3 * ring + 3]:
                if float(g.abs().max()) < 0.45 / pixel_size:
                    frequencies.append(g)
                    groups.append(settings.orders * sheet + ring)
    if not frequencies:
        return Waves(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long), torch.zeros(0, 2, height * width))
    x, y = coordinates((height, width), pixel_size)
    smooth_y, spread_y = _smoothers(y, settings.smoothing)
    smooth_x, spread_x = _smoothers(x, settings.smoothing)
    density = smooth_y @ free @ smooth_x.T
    share = density / density.max()
    rest = mean - (mean * free).sum() / free.sum()
    one = torch.ones(1)
    carriers = [
        (torch.polar(one, 2 * math.pi * g[1] * y), torch.polar(one, 2 * math.pi * g[0] * x)) for g in frequencies
    ]
    maps = [torch.zeros(len(smooth_y), len(smooth_x), dtype=torch.complex64) for _ in frequencies]

    def wave(k: int) -> Tensor:
        envelope = spread_y.to(torch.complex64) @ maps[k] @ spread_x.T.to(torch.complex64)
        return 2 * envelope * carriers[k][0][:, None] * carriers[k][1]

    for _ in range(3):
        for k, (along_y, along_x) in enumerate(carriers):
            demodulated = (rest * free).to(torch.complex64) * along_y.conj()[:, None] * along_x.conj()
            total = smooth_y.to(torch.complex64) @ demodulated @ smooth_x.T.to(torch.complex64)
            overall = demodulated.sum() / free.sum()
            # where little is seen nearby, the mean over the whole field steps in
            change = (total / density.max() + 0.05 * overall) / (share + 0.05)
            before = wave(k).real
            maps[k] = maps[k] + change
            rest = rest - (wave(k).real - before)
    waves = [wave(k) for k in range(len(maps))]
    basis = torch.stack([torch.stack((w.real, -w.imag)).flatten(1) for w in waves])
    return Waves(torch.stack(frequencies), torch.tensor(groups), basis)


def _smoothers(axis: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """Gaussian averages at knots every half ``sigma`` (knots, n), and linear interpolation back (n, knots)."""
    count = max(2, math.ceil(float(axis[-1]) / (sigma / 2)) + 1)
    knots = torch.linspace(0, float(axis[-1]), count)
    smooth = torch.exp(-(((knots[:, None] - axis) / sigma) ** 2) / 2)
    spread = (1 - (axis[:, None] - knots).abs() / float(knots[1] - knots[0])).clamp(min=0)
    return smooth, spread


def fit_scales(
    frames: Tensor, waves: Waves, displacements: Tensor, free: Tensor, noise: float, spread: float
) -> Tensor:
    """How strong each group of waves is in each frame, relative to the mean.

    Parameters
    ----------
    frames : (n, y, x) less their mean.
    displacements : (n, 2) angstrom.
    free : (n, y, x) or (y, x), 0 where a particle lies.
    noise : variance of a pixel.
    spread : expected rms of the scale about 1 (defocus, blur): what is not seen stays near 1.

    Returns
    -------
    (n, groups), at least 0.
    """
    n, groups = len(frames), int(waves.group.max()) + 1 if len(waves.group) else 0
    angle = -2 * math.pi * displacements.to(waves.frequencies) @ waves.frequencies.T
    weight = free.reshape(-1, waves.basis.shape[-1])
    seen = (frames.flatten(1) * weight) @ waves.basis.flatten(0, 1).T
    seen = seen.view(n, -1, 2)
    overlap = seen[..., 0] * angle.cos() + seen[..., 1] * angle.sin()
    # two parts of a wave have the same power; shifting it turns one into the other
    power = (weight @ waves.basis[:, 0].square().T).expand(n, -1)
    sums = torch.zeros(n, groups).index_add(1, waves.group, overlap)
    norms = torch.zeros(n, groups).index_add(1, waves.group, power)
    prior = noise / spread**2
    return ((sums + prior) / (norms + prior)).clamp(min=0)
