import math

import pytest
import torch

from common.data import InputError, Volume
from common.masks import soft_ball
from common.resolution import FSC, corrected_shell_correlation, fourier_shell_correlation, randomise_phases


def noise(d, seed):
    return torch.randn(d, d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("d", [24, 25])
def test_independent_noise_correlates_as_chance_allows(d):
    fsc = fourier_shell_correlation(Volume(noise(d, 0), 1.0), Volume(noise(d, 1), 1.0))
    z = fsc.correlation[1:] * (2 * fsc.counts[1:]).sqrt()
    assert float(z.abs().max()) < 4
    assert float(z.square().mean()) == pytest.approx(1, abs=0.9)


def test_curve_of_signal_and_noise_is_their_power_ratio():
    signal, sigma = noise(32, 0), 0.7
    a, b = (Volume(signal + sigma * noise(32, seed), 0.5) for seed in (1, 2))
    fsc = fourier_shell_correlation(a, b)
    assert float(fsc.correlation[6:].mean()) == pytest.approx(1 / (1 + sigma**2), abs=0.01)
    assert float(fsc.frequencies[-1]) == pytest.approx(1 / (2 * 0.5))
    assert torch.allclose(fourier_shell_correlation(a, a).correlation, torch.ones(17).double())


def test_first_crossing_is_interpolated():
    frequencies = torch.arange(6).double() / 10
    fsc = FSC(frequencies, torch.tensor([1.0, 0.9, 0.7, 0.3, 0.6, 0.1]).double(), torch.ones(6).double())
    assert fsc.resolution(0.5) == pytest.approx(1 / 0.25)
    assert fsc.resolution(0.143) == pytest.approx(1 / (0.4 + 0.1 * (0.6 - 0.143) / 0.5))
    assert fsc.resolution(0.05) == pytest.approx(2.0)
    assert fsc.resolution(0.95) == math.inf


def test_phases_are_random_only_outside_and_amplitudes_stay():
    values = noise(16, 0)
    mixed = randomise_phases(values, 5, generator=torch.Generator().manual_seed(3))
    fsc = fourier_shell_correlation(Volume(values, 1.0), Volume(mixed, 1.0))
    assert torch.allclose(fsc.correlation[:5], torch.ones(5).double())
    assert float(fsc.correlation[5:].abs().max()) < 0.3
    assert torch.allclose(torch.fft.fftn(mixed).abs(), torch.fft.fftn(values).abs(), atol=1e-9)


def test_correction_takes_out_what_a_tight_mask_adds():
    d = 32
    k = (sum(g**2 for g in torch.meshgrid(*[torch.fft.fftfreq(d)] * 3, indexing="ij"))).sqrt()
    smooth = torch.fft.ifftn(torch.fft.fftn(noise(d, 0)) * torch.exp(-((k / 0.12) ** 2))).real
    a, b = (Volume(smooth + 0.05 * noise(d, seed), 1.0) for seed in (1, 2))
    mask = soft_ball(d, 4, 2, dtype=torch.float64)
    masked = fourier_shell_correlation(a, b, mask).correlation
    corrected = corrected_shell_correlation(a, b, mask, generator=torch.Generator().manual_seed(3)).correlation
    plain = fourier_shell_correlation(a, b).correlation
    start = int((plain[1:] < 0.8).nonzero()[0]) + 3
    assert torch.equal(corrected[:start], masked[:start])
    assert float(corrected[start:].mean()) < float(masked[start:].mean()) - 0.02


def test_maps_on_different_grids_are_refused():
    with pytest.raises(InputError, match="resample one"):
        fourier_shell_correlation(Volume(torch.ones(8, 8, 8), 1.0), Volume(torch.ones(8, 8, 8), 1.1))
