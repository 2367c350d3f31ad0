from dataclasses import replace
from typing import get_args

import pytest
import torch

from aet_tilt.reconstruction.est import EstSettings
from aet_tilt.reconstruction.genfire import GenfireSettings
from aet_tilt.reconstruction.methods import (
    Method,
    ReconstructionSettings,
    choose_method,
    held_out,
    held_out_r1,
    reconstruct_volume,
)
from aet_tilt.reconstruction.problem import make_problem
from aet_tilt.reconstruction.real_space import RealSpaceSettings
from aet_tilt.reconstruction.resire import ResireSettings
from aet_tilt.reconstruction.sieve import SieveSettings
from aet_tilt.reconstruction.sparse import SparseSettings
from aet_tilt.reconstruction.support import loose_support, tighten
from common.data import ImageStack, InputError, Poses
from common.io.checkpoint import CheckpointObserver
from common.rotations import rotation_from_vector

QUICK = ReconstructionSettings(
    sieve=SieveSettings(8),
    sparse=SparseSettings(8),
    resire=ResireSettings(8),
    genfire=GenfireSettings(6),
    est=EstSettings(4),
    real_space=RealSpaceSettings(iterations=2),
)


class Stopped(Exception):
    pass


class StopsAfter:
    """Lets a run live for so many states."""

    def __init__(self, states):
        self.left = states

    def resume(self, name, first):
        return None

    def observe(self, name, state):
        self.left -= 1
        if self.left < 0:
            raise Stopped


@pytest.mark.parametrize("method", get_args(Method))
def test_every_method_gives_a_volume_like_the_particle_and_resumes_bit_for_bit(method, clean, agreement, tmp_path):
    second = torch.arange(0, 31, 2)
    stack, poses = ImageStack(clean.images[second], 0.5), clean.operator.poses[second]
    whole = reconstruct_volume(stack, poses, method, QUICK)
    assert whole.values.shape == (32, 32, 32)
    assert agreement(whole.values) > 0.55
    if method == "fbp":
        return
    saving = CheckpointObserver(tmp_path, labels={}, interval=0)
    with pytest.raises(Stopped):
        reconstruct_volume(stack, poses, method, QUICK, [saving, StopsAfter(2)])
    resumed = reconstruct_volume(stack, poses, method, QUICK, [CheckpointObserver(tmp_path, labels={}, interval=0)])
    assert torch.equal(resumed.values, whole.values)


def test_auto_takes_the_best_prediction_and_says_so(counted):
    choice = choose_method(counted, QUICK)
    assert [c.held_out_error for c in choice.tried] == sorted(c.held_out_error for c in choice.tried)
    best = next(c for c in choice.tried if c.settings == choice.settings and c.method == choice.method)
    assert best.held_out_error <= 1.005 * choice.tried[0].held_out_error
    assert f"{best.held_out_r1:.4f}" in choice.reason
    assert {"sieve", "sparse", "genfire", "resire", "sirt"} == {c.method for c in choice.tried}


def test_a_method_that_fits_noise_predicts_worse(phantom, count, new_tilts):
    stack = ImageStack(count(phantom.images(new_tilts()), 4.0), 0.5)
    problem = make_problem(stack, new_tilts())
    through_sieve = held_out_r1(problem, "sieve", ReconstructionSettings(sieve=SieveSettings(30, 0.6)))
    plain = held_out_r1(problem, "sieve", ReconstructionSettings(sieve=SieveSettings(30, 0.0)))
    assert through_sieve < plain


def test_few_images_are_not_judged(clean):
    choice = choose_method(clean.subset(torch.arange(5)), QUICK)
    assert choice.method == "sieve"
    assert "5 images are too few" in choice.reason


def test_images_left_out_are_spread():
    assert held_out(46, 7).tolist() == [3, 10, 17, 24, 31, 38, 45]


def test_a_tilted_axis_changes_nothing(phantom, new_tilts, agreement):
    in_plane = rotation_from_vector(torch.tensor([0.0, 0.0, 0.3]))
    poses = Poses(in_plane @ new_tilts().rotations, torch.full((31, 2), 0.4))
    found = reconstruct_volume(
        ImageStack(phantom.images(poses), 0.5), poses, "sieve", replace(QUICK, sieve=SieveSettings(30))
    )
    assert agreement(found.values) > 0.95


def test_supports_hold_the_particle_and_shrink(clean, phantom):
    truth = phantom.volume
    loose = loose_support(clean)
    tight = tighten(truth, loose)
    for support in (loose, tight):
        assert float((truth * support).sum() / truth.sum()) > 0.999
    assert float(tight.sum()) <= float(loose.sum()) < 0.7 * loose.numel()
    assert torch.equal(tight * loose, tight)


def test_wrong_wishes_are_named(clean):
    stack, poses = ImageStack(clean.images, 0.5), clean.operator.poses
    with pytest.raises(InputError, match="'magic'"):
        reconstruct_volume(stack, poses, "magic")
    with pytest.raises(InputError, match="every 1th"):
        ReconstructionSettings(held_out_every=1)
    with pytest.raises(InputError, match="'wide'"):
        ReconstructionSettings(support="wide")
    with pytest.raises(InputError, match="3 images"):
        held_out_r1(clean.subset(torch.arange(3)), "fbp", QUICK)
