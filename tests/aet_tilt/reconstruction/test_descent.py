"""RESIRE, the sieve and total variation: descents on the squared error."""

from dataclasses import replace

import pytest
import torch

from aet_tilt.reconstruction import resire, sieve, sparse
from aet_tilt.reconstruction.problem import make_problem
from aet_tilt.reconstruction.real_space import filtered_back_projection
from common.data import ImageStack, InputError


def misfit(problem, values):
    return float((problem.operator.project(values) - problem.images).square().sum())


def test_resire_never_climbs_and_explains_clean_images(clean, agreement):
    settings, state = resire.ResireSettings(iterations=60), resire.start(clean)
    errors = [misfit(clean, state.values)]
    while not state.done:
        state = resire.step(state, clean, settings)
        errors.append(misfit(clean, state.values))
    assert errors == sorted(errors, reverse=True)
    assert agreement(state.values) > 0.97
    assert bool((state.values >= 0).all())


def test_resire_beats_back_projection_on_counts(counted, agreement):
    found = resire.resire(counted, resire.ResireSettings(iterations=60))
    assert agreement(found.values) > agreement(filtered_back_projection(counted)) + 0.1


def test_the_sieve_comes_closer_than_resire_at_few_counts(phantom, count, new_tilts, agreement):
    problem = make_problem(ImageStack(count(phantom.images(new_tilts()), 4.0), 0.5), new_tilts())
    through_sieve = sieve.sieve(problem, sieve.SieveSettings(45, 0.6)).values
    plain = resire.resire(problem, resire.ResireSettings(iterations=45)).values
    assert agreement(through_sieve) > agreement(plain) + 0.05
    assert agreement(through_sieve) > 0.87


def test_without_width_the_sieve_is_an_accelerated_resire(clean):
    fast = sieve.sieve(clean, sieve.SieveSettings(30, 0.0)).values
    slow = resire.resire(clean, resire.ResireSettings(iterations=30)).values
    assert misfit(clean, fast) < misfit(clean, slow)


def test_total_variation_finds_blocks_from_few_counts(count, new_tilts):
    truth = torch.zeros(32, 32, 32)
    truth[9:22, 8:24, 10:20] = 1
    truth[12:18, 12:18, 12:18] = 0.4
    poses = new_tilts(9)
    problem = make_problem(ImageStack(torch.zeros(9, 32, 32), 0.5), poses)
    problem = replace(problem, images=count(problem.operator.project(truth).clamp(min=0), 100.0))
    errors = [
        float((sparse.total_variation(problem, sparse.SparseSettings(60, weight)).values - truth).norm())
        for weight in (0.0, 0.02)
    ]
    assert errors[1] < 0.7 * errors[0]


def test_the_differences_have_their_exact_adjoint():
    generator = torch.Generator().manual_seed(0)
    values, fields = (torch.randn(*shape, 4, 5, 6, generator=generator, dtype=torch.float64) for shape in ((), (3,)))
    ours, theirs = (sparse.differences(values) * fields).sum(), (values * sparse.differences_adjoint(fields)).sum()
    assert float(ours) == pytest.approx(float(theirs), abs=1e-12)


def test_the_larger_its_weight_the_flatter_the_map(counted):
    found = [sparse.total_variation(counted, sparse.SparseSettings(25, weight)).values for weight in (0.0, 0.02, 0.5)]
    variation = [float(sparse.differences(values).square().sum(0).sqrt().sum()) for values in found]
    errors = [misfit(counted, values) for values in found]
    assert variation[0] > 1.1 * variation[1] > 2 * variation[2]
    assert errors == sorted(errors)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: resire.ResireSettings(0), "0 iterations"),
        (lambda: sieve.SieveSettings(10, -1.0), "width of -1"),
        (lambda: sparse.SparseSettings(10, 1.0), "weight of 1"),
    ],
)
def test_wrong_settings_are_named(make, match):
    with pytest.raises(InputError, match=match):
        make()
