"""Several maps at once, from images of two clusters whose atoms are known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from ase import Atoms

from common.atoms.comparison import same_structure
from common.atoms.tracing import TracingSettings
from common.data import ImageStack
from common.noise import estimate_noise, particle_radius, whiten
from common.simulation import simulate_images
from spr.ab_initio import SearchSettings, prepare, search, start, trial_shifts
from spr.class_search import ClassStart, agree_on_one, most_alike, search_classes, start_classes
from spr.consensus import ConsensusSettings
from spr.orientation_search import expectation, joined_views, random_frames, views_of
from spr.ring_images import RingImages
from spr.ring_sampling import SearchGrid

SETTINGS = SearchSettings(iterations=20, images_per_iteration=60, effective_poses=500.0, final_effective_poses=1.5)


def cluster(seed: int, n: int = 14) -> Atoms:
    """A compact cluster without symmetry, atoms at least 2.6 angstrom apart."""
    random = torch.Generator().manual_seed(seed)
    chosen = torch.zeros(1, 3)
    while len(chosen) < n:
        tried = 5.0 * (2 * torch.rand(4000, 3, generator=random) - 1)
        free = tried[(tried[:, None] - chosen).norm(dim=2).amin(1) > 2.6]
        chosen = torch.cat((chosen, free[free.norm(dim=1).argmin()][None]))
    return Atoms(f"Au{n}", positions=chosen.numpy())


@pytest.fixture(scope="module")
def mixed() -> tuple[RingImages, SearchGrid, torch.Tensor]:
    """100 images of one cluster, then 100 of another."""
    images = [
        simulate_images(
            cluster(seed),
            100,
            box_size=48,
            pixel_size=0.4,
            snr=4.0,
            shift_sigma=0.4,
            generator=torch.Generator().manual_seed(seed),
        ).stack.images
        for seed in (4, 5)
    ]
    stack = ImageStack(torch.cat(images), 0.4)
    noise, extent = estimate_noise(stack), particle_radius(stack)
    rings, grid = prepare(
        stack,
        whiten(stack, noise),
        noise,
        radius=extent.radius,
        shift_spread=extent.shift_spread,
        settings=SETTINGS,
    )
    return rings, grid, torch.arange(200) // 100


def test_one_kind_of_particle_is_found_with_its_images(mixed: tuple[RingImages, SearchGrid, torch.Tensor]) -> None:
    rings, grid, kind = mixed
    starts = ConsensusSettings(most=4, narrow=0)
    found = agree_on_one(rings, grid, SETTINGS, TracingSettings(element="Au"), starts, 2, seed=0)
    assert found is not None
    shown = kind[found.rows]
    most = int(shown.double().mean().round())
    assert float((shown == most).double().mean()) > 0.9
    assert int((shown == most).sum()) > 80
    assert len(found.poses) == len(found.rows)


def test_one_map_searched_as_several_is_the_search_for_one(
    mixed: tuple[RingImages, SearchGrid, torch.Tensor],
) -> None:
    rings, grid, _ = mixed
    short = replace(SETTINGS, iterations=4)
    several = search_classes(rings, grid, short, 1, seed=3)
    one = search(rings, grid, replace(short, iterations=several.iteration), seed=3)
    assert torch.equal(several.values[0], one.values)


def test_two_copies_of_a_map_share_the_images_evenly(mixed: tuple[RingImages, SearchGrid, torch.Tensor]) -> None:
    rings, grid, _ = mixed
    values = start(rings, grid, SETTINGS, seed=1).values
    frames = random_frames(40, generator=torch.Generator().manual_seed(2))
    views = views_of(values, frames, grid.shells, rings.rings.shape[-1], rings.weights)
    index = torch.arange(8)
    trials = trial_shifts(rings.centres[index], 0.1)
    alone, both = (expectation(rings, index, trials, v, 2.0) for v in (views, joined_views([views, views])))
    for half in (both.sums[..., :40], both.sums[..., 40:]):
        torch.testing.assert_close(2 * half, alone.sums, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(both.counts[:, :40] + both.counts[:, 40:], alone.counts)
    torch.testing.assert_close(both.best, alone.best)


def test_maps_of_one_structure_are_named_whatever_their_numbers(
    mixed: tuple[RingImages, SearchGrid, torch.Tensor],
) -> None:
    rings, grid, _ = mixed
    state = start_classes(rings, grid, SETTINGS, 2, seed=0)
    assert not torch.equal(state.values[0], state.values[1])
    a, b = cluster(4), cluster(5)
    turned = a.copy()
    turned.rotate(40, (1, 2, 3))
    assert same_structure(a, b)[0] < 0.7
    starts = [ClassStart(state, 1.0, (b, Atoms())), ClassStart(state, 2.0, (Atoms(), turned))]
    assert most_alike(starts)[0] < 0.7
    starts.append(ClassStart(state, 3.0, (a, Atoms())))
    shared, pair = most_alike(starts)
    assert shared == 1
    assert pair == ((2, 0), (1, 1))
