"""Through-focal series: what the foci mean is found, and the whole road makes use of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from scipy.spatial import cKDTree

from aet_tilt.focus import FocusSettings, find_focus
from aet_tilt.pipeline import reconstruct, refine_atoms
from aet_tilt.preprocessing import preprocess, same_views
from aet_tilt.reconstruction.methods import ReconstructionSettings
from aet_tilt.reconstruction.sieve import SieveSettings
from aet_tilt.settings import Settings
from common.data import Focus, ImageStack, InputError, Poses
from common.io import write_images
from common.io.tilt_series import read_tilt_series
from common.simulation_adf import AdfOptics, adf_images
from common.simulation_tilts import AnnularImaging, SimulatedTilts, box_of, simulate_tilts
from common.specimens import twinned_crystal

OPENING = 0.02


def _series(foci: tuple[float, ...] = (-30.0, 0.0, 30.0), opening: float = OPENING) -> SimulatedTilts:
    generator = torch.Generator().manual_seed(0)
    atoms = twinned_crystal(60, element="Au", lattice_constant=4.08, generator=generator)
    made = simulate_tilts(
        atoms,
        torch.linspace(-60, 60, 11),
        box_size=box_of(atoms, pixel_size=0.5),
        pixel_size=0.5,
        imaging=AnnularImaging(brightest=150.0, opening=opening),
        foci=foci,
        generator=generator,
    )
    nominal = Poses(made.nominal.rotations.float(), made.nominal.shifts.float())
    return replace(made, nominal=nominal)


@pytest.fixture(scope="module")
def data() -> SimulatedTilts:
    return _series()


def _errors(found: Atoms | None, truth: Atoms) -> np.ndarray:
    """(n, 3) errors of the atoms, each of which is found once, less the shift of all."""
    assert found is not None
    assert len(found) == len(truth)
    a, b = (atoms.positions - atoms.positions.mean(0) for atoms in (found, truth))
    nearest = cKDTree(b).query(a)[1]
    assert len(set(nearest)) == len(b)
    return a - b[nearest]


def _stated(data: SimulatedTilts, sign: float, zero: float) -> ImageStack:
    """The same images, with the foci counted from elsewhere and perhaps against the beam."""
    assert data.stack.focus is not None
    return replace(data.stack, focus=Focus(sign * (data.stack.focus.heights - zero)))


@pytest.mark.parametrize(("sign", "zero"), [(1.0, 0.0), (-1.0, 12.0), (1.0, -20.0)])
def test_sign_zero_and_opening_are_found(data: SimulatedTilts, sign: float, zero: float) -> None:
    rng = np.random.default_rng(0)
    atoms = data.atoms.copy()
    atoms.positions += rng.normal(0, 0.15, atoms.positions.shape)
    found = find_focus(_stated(data, sign, zero), data.poses, atoms, FocusSettings())
    assert found.focus is not None
    assert data.stack.focus is not None
    assert found.focus.opening == pytest.approx(OPENING, rel=0.1)
    torch.testing.assert_close(found.focus.heights, data.stack.focus.heights, atol=2.0, rtol=0)
    assert ("along" if sign > 0 else "against") in found.note


def test_foci_that_do_not_show_are_left_alone() -> None:
    sharp = _series(opening=0.0)
    found = find_focus(sharp.stack, sharp.poses, sharp.atoms, FocusSettings())
    assert found.focus is None
    assert "do not show" in found.note


def test_known_foci_make_atoms_better(data: SimulatedTilts) -> None:
    """The same images and the same road, with the foci and without (frames of one angle are averaged there)."""
    quick = ReconstructionSettings(support="loose", sieve=SieveSettings(12, 0.8))
    errors = []
    for stack in (_stated(data, -1.0, 5.0), replace(data.stack, focus=None)):
        result = reconstruct(stack, data.nominal, Settings(elements=("Au",), align=False, reconstruction=quick))
        errors.append(float(np.sqrt((_errors(result.atoms, data.atoms) ** 2).mean())))
    assert errors[0] < 0.85 * errors[1]


def test_atoms_alone_are_refined_with_the_foci_of_repeated_frames(data: SimulatedTilts) -> None:
    """Frames of one angle and focus are averaged before their foci are found, whatever their order."""
    twice = torch.cat((torch.arange(33), torch.arange(33).flip(0)))
    stack = _stated(data, -1.0, 5.0)
    atoms = data.atoms.copy()
    atoms.positions += np.random.default_rng(1).normal(0, 0.1, atoms.positions.shape)
    found = refine_atoms(stack[twice], data.poses[twice], atoms, Settings(elements=("Au",))).atoms
    errors = _errors(found, data.atoms)
    assert found is not None
    assert np.sqrt((errors**2).mean()) < 1.3 * np.sqrt((found.arrays["position_sigma"] ** 2).mean())
    assert cKDTree(data.atoms.positions).query(found.positions)[0].max() < 0.5


def test_frames_of_one_angle_and_other_foci_are_not_averaged(data: SimulatedTilts) -> None:
    assert len(preprocess(data.stack, data.nominal).stack) == 33
    twice = torch.arange(33).repeat(2)
    clean = preprocess(data.stack[twice], data.nominal[twice])
    assert len(clean.stack) == 33
    assert clean.stack.focus is not None
    assert data.stack.focus is not None
    torch.testing.assert_close(clean.stack.focus.heights, data.stack.focus.heights)
    assert int(same_views(data.nominal).max()) + 1 == 11


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["0"] * 6, "6 foci for 7 images"),
        (["0"] * 6 + ["sharp"], "line 7 is 'sharp', expected a focus"),
        (["0"] * 6 + ["nan"], "line 7 is 'nan'"),
    ],
)
def test_bad_foci_in_one_line(tmp_path: Path, lines: list[str], said: str) -> None:
    write_images(tmp_path / "a.mrc", torch.rand(7, 16, 16, generator=torch.Generator().manual_seed(0)), 0.5)
    (tmp_path / "a.tlt").write_text("\n".join(map(str, range(7))))
    (tmp_path / "foci.txt").write_text("# angstrom\n" + "\n".join(lines[:-1]) + f"\n{lines[-1]}\n")
    with pytest.raises(InputError) as caught:
        read_tilt_series(tmp_path / "a.mrc", focus=tmp_path / "foci.txt")
    assert said.replace("line 7", "line 8") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_methods_that_take_images_for_projections_are_refused(data: SimulatedTilts) -> None:
    with pytest.raises(InputError, match="genfire takes images for projections"):
        reconstruct(data.stack, data.nominal, Settings(elements=("Au",), method="genfire"))


def test_a_probe_opens_as_multislice_says() -> None:
    """A gold atom on and off the focus (abTEM): its image widens by about 0.4 times the probe's half angle."""
    pixel, box, depth, angle = 0.4, 24, 35.0, 0.025
    optics = AdfOptics(voltage_kv=200.0, convergence_mrad=1000 * angle, inner_mrad=60.0, outer_mrad=81.0)
    views = torch.tensor([[[0.0, 0.0, 0.0]], [[0.0, 0.0, depth]]])
    images = adf_images(["Au"], views, optics, box_size=box, pixel_size=pixel)
    k = torch.fft.fftfreq(box, pixel)
    source = torch.exp(-2 * (torch.pi * 0.4) ** 2 * (k[:, None] ** 2 + k**2))
    seen = torch.fft.ifft2(torch.fft.fft2(images) * source).real
    grid = pixel * (torch.arange(box) - box // 2)
    trials = torch.arange(0.3, 1.2, 0.005)
    made = torch.exp(-(grid[:, None] ** 2 + grid**2) / (2 * trials[:, None, None] ** 2)).flatten(1)
    near, far = (float(trials[((made @ image.flatten()) / made.norm(dim=1)).argmax()]) for image in seen)
    assert (far**2 - near**2) ** 0.5 / depth == pytest.approx(0.4 * angle, rel=0.2)


def test_foci_of_a_film_are_refused() -> None:
    film = torch.rand(6, 24, 24, generator=torch.Generator().manual_seed(1)) + 5
    stack = ImageStack(film, 0.5, focus=Focus(torch.zeros(6)))
    poses = Poses.from_tilt_angles(torch.linspace(-50, 50, 6))
    with pytest.raises(InputError, match="needs an isolated particle"):
        reconstruct(stack, poses, Settings(elements=("Au",)))
