"""What only movies need between the stages of a reconstruction."""

from __future__ import annotations

from dataclasses import replace

import torch
from ase.cluster import Icosahedron

from common.atoms.model import AtomicModel, first_parameters
from common.data import Optics
from common.simulation import simulate_images
from spr.map_stages import look_at
from spr.movie_pipeline import time_blocks, with_defocus_in_time
from spr.settings import Settings


def test_halves_are_blocks_of_time() -> None:
    frames = torch.tensor([0, 1, 24, 25, 49, 50, 74, 75, 1000])
    assert time_blocks(frames).tolist() == [0, 0, 0, 1, 1, 0, 0, 1, 0]
    assert abs(int(time_blocks(torch.arange(1200)).sum()) - 600) == 0


def test_defocus_follows_time_and_no_image_changes() -> None:
    """What neighbours share goes to the optics, also of frames left out; the sum stays for those that were fitted."""
    n, atoms = 120, Icosahedron("Au", 2)
    made = simulate_images(atoms, n, box_size=40, pixel_size=0.5, snr=1.0, generator=torch.Generator().manual_seed(0))
    one = torch.ones(n)
    focus = torch.stack((-60 * one, -60 * one, 0 * one), 1)
    optics = Optics(300 * one, -0.008 * one, 0 * one, focus, 40 * one, 0 * one)
    stack = replace(made.stack, optics=optics)
    seen = look_at(stack, Settings(element="Au", held_out_fraction=0.2))
    fitted = seen.fitted
    t = torch.arange(n).double()
    true = 12 * torch.sin(t / 15)
    parameters = first_parameters(
        stack[fitted], atoms, made.poses[fitted], widths=(0.4,), fractions=(1.0,), focal_spread=40.0
    )
    jitter = 3 * torch.randn(n, generator=torch.Generator().manual_seed(1)).double()
    parameters = replace(parameters, defocus=(true + jitter)[fitted])
    zero = torch.zeros(len(fitted)).double()
    model = AtomicModel(("Au",) * len(atoms), parameters, zero + 1, zero, zero, zero)
    after, smooth = with_defocus_in_time(seen, model, torch.arange(n))
    assert after.stack.optics is not None
    common = after.stack.optics.defocus[:, 0].double() + 60
    torch.testing.assert_close(common[fitted] + smooth.parameters.defocus, parameters.defocus, atol=1e-4, rtol=0)
    assert float((common - true)[10:-10].square().mean().sqrt()) < 2.5
    assert float(smooth.parameters.defocus.square().mean().sqrt()) < 5
    assert torch.equal(after.stack.optics.defocus[:, 2], focus[:, 2])
