"""What a run concludes from what its stages returned: made-up stages with known answers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from ase import Atoms
from torch import Tensor

from common.atoms.likelihood import Parameters
from common.atoms.model import AtomicModel
from common.atoms.symmetry_breaking import Broken
from common.atoms.tracing import TraceResult
from common.data import ImageStack, Optics, Poses, Volume
from common.noise import ParticleExtent, estimate_noise, whiten
from common.resolution import FSC
from common.rotations import euler_to_matrix, random_rotations
from spr.ab_initio import SearchState
from spr.consensus import Consensus, ConsensusSettings, Start, judge
from spr.final_maps import Maps, resolution
from spr.result import Stages, conclude, judge_model
from spr.seen import Seen

N, LEFT_OUT = 12, torch.tensor([2, 7, 11])
FITTED = torch.tensor([i for i in range(N) if i not in LEFT_OUT.tolist()])
CUBE = 1.44 * torch.tensor([[a, b, c] for a in (-1.0, 1.0) for b in (-1.0, 1.0) for c in (-1.0, 1.0)])  # 2.88 apart


def seen_of(optics: Optics | None = None, warnings: tuple[str, ...] = ()) -> Seen:
    stack = ImageStack(torch.randn(N, 40, 40, generator=torch.Generator().manual_seed(0)) + 10, 0.4, optics)
    noise = estimate_noise(stack, radius=5.0)
    return Seen(stack, whiten(stack, noise), noise, ParticleExtent(4.0, 0.3), FITTED, LEFT_OUT, warnings)


def numbered_poses(rows: Tensor) -> Poses:
    """Poses that tell which image they belong to."""
    angles = torch.stack((10.0 * rows, 5.0 * rows, -7.0 * rows), -1).double()
    return Poses(euler_to_matrix(angles), torch.stack((0.1 * rows, -0.2 * rows), -1).double())


def model_of(rows: Tensor, positions: Tensor = CUBE, gain: float = 80.0) -> AtomicModel:
    poses, m, n = numbered_poses(rows), len(rows), len(positions)
    zeros, ones = torch.zeros(m, dtype=torch.float64), torch.ones(m, dtype=torch.float64)
    parameters = Parameters(
        positions.double(),
        torch.ones(n, dtype=torch.float64),
        torch.zeros(n, dtype=torch.float64),
        torch.tensor([0.4], dtype=torch.float64),
        torch.tensor([1.0], dtype=torch.float64),
        *(torch.tensor(x, dtype=torch.float64) for x in (45.0, 2.0, 0.0)),
        poses.rotations,
        poses.shifts,
        zeros,
        3.0 * rows.double(),
    )
    return AtomicModel(("Au",) * n, parameters, ones, gain + rows.double(), 80 * ones, 0.5 + rows.double() / 100)


def traced_of(reason: str = "") -> TraceResult:
    none = torch.empty(0).numpy()
    return TraceResult(Atoms("Au8", positions=CUBE.numpy()), 0.5, none, 0.5, 0.02, 0.05, 0.0, not reason, reason)


def consensus_of(agreeing: bool) -> Consensus:
    state = SearchState(3, True, torch.zeros(4, 4, 4), torch.zeros(2, 2), 0.0, 1.0)
    poses = numbered_poses(torch.arange(N))
    starts = tuple(Start(state, poses, 60.0 + i, Atoms()) for i in range(3))
    agreement = torch.eye(3)
    if agreeing:
        agreement[2, 0] = agreement[0, 2] = 1.0
    return judge(starts, agreement, ConsensusSettings())


def finished(**changed: object) -> Stages:
    stages = Stages(
        seen_of(), consensus_of(True), traced=traced_of(), model=model_of(FITTED), left_out=model_of(LEFT_OUT)
    )
    return replace(stages, **changed)  # type: ignore[arg-type]


def test_without_agreement_there_are_no_atoms_and_it_says_why() -> None:
    found = conclude(Stages(seen_of(), consensus_of(False)))
    assert not found.determined
    assert found.atoms is None
    assert found.poses is None
    assert found.model is None
    assert found.verdict.startswith("Not determined")
    (warning,) = found.warnings
    assert "of 3 starts no other found the same structure" in warning
    assert found.metrics["starts_that_agree"] == 1
    assert found.starts is not None
    assert found.starts.agrees.tolist() == [False, False, True]


def test_a_good_run_stands_by_its_atoms() -> None:
    found = conclude(finished())
    assert found.determined
    assert found.warnings == ()
    assert found.verdict.startswith("8 atoms found; 2 of 3 starts agree")
    assert "hand is not determined" in found.verdict
    assert found.atoms is not None
    assert len(found.atoms) == 8
    assert set(found.atoms.arrays) >= {"peak_height", "b_factor"}
    assert found.metrics["atoms"] == 8
    assert found.metrics["images"] == N
    assert found.metrics["search_nats_per_image"] == 62.0


def test_images_come_in_the_order_of_the_input() -> None:
    found = conclude(finished())
    every = torch.arange(N)
    assert found.poses is not None
    assert found.scores is not None
    torch.testing.assert_close(found.poses.rotations, numbered_poses(every).rotations)
    torch.testing.assert_close(found.poses.shifts, numbered_poses(every).shifts)
    torch.testing.assert_close(found.image_columns["rlnLogLikeliContribution"], 80.0 + every.double())
    torch.testing.assert_close(found.scores.values, 0.5 + every.double() / 100)
    assert found.scores.held_out is not None
    assert found.scores.held_out.nonzero()[:, 0].tolist() == LEFT_OUT.tolist()
    assert found.examples is not None
    assert not set((found.examples.numbers - 1).tolist()) & set(LEFT_OUT.tolist())
    assert "rlnDefocusU" not in found.image_columns  # projections have none


def test_refined_defocus_is_added_to_that_of_the_file() -> None:
    row = torch.ones(N)
    optics = Optics(
        300 * row, -0.01 * row, 0 * row, torch.stack((-90 * row, -80 * row, 30 * row), 1), 40 * row, 0 * row
    )
    columns = conclude(finished(seen=seen_of(optics))).image_columns
    offset = 3.0 * torch.arange(N).double() + 2.0  # of each image, and shared
    torch.testing.assert_close(columns["rlnDefocusU"].double(), -90 + offset)
    torch.testing.assert_close(columns["rlnDefocusV"].double(), -80 + offset)


def test_what_was_noticed_before_is_passed_on_without_doubt() -> None:
    found = conclude(finished(seen=seen_of(warnings=("atoms are dark",))))
    assert found.determined
    assert found.warnings == ("atoms are dark",)


close_pair = torch.cat((CUBE, CUBE[:1] + torch.tensor([1.2, 0.0, 0.0])))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"traced": traced_of("peaks of atoms and of noise overlap")}, "peaks of atoms and of noise overlap"),
        ({"left_out": model_of(LEFT_OUT, gain=40.0)}, "fitted to noise"),
        ({"model": model_of(FITTED, close_pair)}, "only 1.20 A apart"),
    ],
)
def test_whatever_speaks_against_the_atoms_is_said(changed: dict[str, object], words: str) -> None:
    found = conclude(finished(**changed))
    assert not found.determined
    assert len(found.warnings) == 1
    assert words in found.warnings[0]
    assert "with doubts" in found.verdict


@pytest.mark.parametrize(("proof", "said"), [(-3.0, True), (40.0, False)])
def test_a_near_symmetry_that_the_images_do_not_settle_is_said(proof: float, said: bool) -> None:
    broken = Broken(model_of(FITTED), proof, certainty=0.6, spread=0.02, limit=0.051, operations=48)
    result = conclude(finished(broken=broken))
    assert any("47 other ways" in line and "5 pm" in line for line in result.warnings) == said
    assert result.determined
    assert result.metrics["near_symmetries"] == 48


def test_images_that_nothing_explains_are_counted_and_marked() -> None:
    model = model_of(FITTED)
    gain = model.log_likelihood.clone()
    gain[[0, 4, 5]] = torch.tensor([1.0, -5.0, 3.0], dtype=gain.dtype)
    found = conclude(finished(model=replace(model, log_likelihood=gain)))
    assert not found.determined
    assert found.metrics["images_unexplained"] == 3
    assert found.warnings[0].startswith("3 of 9 images are explained by no pose")
    assert found.scores is not None
    assert found.scores.unexplained is not None
    assert found.scores.unexplained.nonzero()[:, 0].tolist() == FITTED[[0, 4, 5]].tolist()


def test_numbers_of_a_model_are_those_of_its_images() -> None:
    numbers, against = judge_model(traced_of(), model_of(FITTED), model_of(LEFT_OUT, gain=72.0))
    assert against == []
    assert numbers["held_out_over_fitted"] == pytest.approx((72 + 7) / (80 + 5))
    assert numbers["nats_per_image"] == pytest.approx(80 + float(FITTED.double().mean()))
    assert numbers["focal_spread_angstrom"] == 45.0
    assert numbers["defocus_shift_angstrom"] == 2.0


def test_a_search_alone_gives_a_map_and_says_so() -> None:
    poses = Poses(random_rotations(N, generator=torch.Generator().manual_seed(1)), torch.zeros(N, 2))
    found = conclude(Stages(seen_of(), consensus_of(True)), poses=poses)
    assert found.determined
    assert found.volume is not None
    assert found.volume.box_size == 40
    assert found.poses is poses
    assert found.atoms is None
    assert not found.verdict.startswith("Not determined")
    assert "2 of 3 starts agree" in found.verdict
    lost = conclude(Stages(seen_of(), consensus_of(False)), poses=poses)
    assert lost.volume is None
    assert lost.verdict.startswith("Not determined")


def maps_of(correlation: list[float]) -> Maps:
    """Shells 0.1 / angstrom apart."""
    empty = Volume(torch.zeros(4, 4, 4), 0.4)
    frequencies = torch.arange(len(correlation)) * 0.1
    return Maps(empty, (empty, empty), empty, FSC(frequencies, torch.tensor(correlation), frequencies + 1))


def test_resolution_is_the_last_fall_past_the_low_shells() -> None:
    # phase contrast transfers nothing at low frequencies: the first shells say nothing
    assert resolution(maps_of([1, 0.1, 0, 0.1, 0.9, 0.9, 0.5, 0.1, 0.9])) == pytest.approx(1 / 0.7)
    # nor does a gap between two reflections of a crystal; a single shell may agree by chance
    assert resolution(maps_of([1, 0, 0, 0, 0.9, 0.1, 0.8, 0.7, 0.1, 0.3, 0.0])) == pytest.approx(1 / 0.8)
    assert resolution(maps_of([1.0] * 14)) == 0.9  # never falls: the finest spacing of the maps
    assert math.isnan(resolution(maps_of([1.0, 0.9, 0.8] + 6 * [0.0])))  # nothing agrees
