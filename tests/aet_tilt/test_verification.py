"""Final atoms of a tilt series through ADF multislice (abTEM), on images that multislice itself made."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.cluster import Octahedron

from aet_tilt.cli import main
from aet_tilt.verification import VerificationSettings, check_can_verify
from common.data import InputError, Poses
from common.io import read_xyz
from common.io.mrc import write_images
from common.simulation_adf import AdfOptics, adf_images

PIXEL, SIDE = 0.5, 28
FAST = AdfOptics(convergence_mrad=20.0, inner_mrad=30.0, outer_mrad=55.0)
OPTIONS = [f"--verification.optics.{n}-mrad={v}" for n, v in (("convergence", 20), ("inner", 30), ("outer", 55))]


@pytest.fixture(scope="module")
def tilts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """19 gold atoms, 7 ADF multislice images within 60 degrees, Poisson counts."""
    folder = tmp_path_factory.mktemp("adf")
    atoms = Octahedron("Au", 3)
    positions = torch.from_numpy(atoms.positions - atoms.positions.mean(0))
    angles = torch.linspace(-60, 60, 7, dtype=torch.float64)
    views = positions @ Poses.from_tilt_angles(angles).rotations.mT
    clean = adf_images(["Au"] * len(atoms), views, FAST, box_size=SIDE, pixel_size=PIXEL)
    counts = torch.poisson(300 * clean / clean.max() + 2, torch.Generator().manual_seed(0))
    write_images(folder / "tilts.mrc", counts, PIXEL)
    (folder / "tilts.tlt").write_text("".join(f"{angle:.4f}\n" for angle in angles))
    return folder / "tilts.mrc"


def test_multislice_confirms_the_atoms_and_finds_them_again(tilts: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    asked = ["--verification.images", "2", "--verification.whole-chain", *OPTIONS]
    assert main(["reconstruct", str(tilts), "--element", "Au", "--out", str(run), *asked]) == 0
    metrics = json.loads((run / "run.json").read_text())["metrics"]
    assert metrics["atoms"] == metrics["again_atoms"] == 19
    assert metrics["again_recall"] == metrics["again_same_species"] == 1
    assert metrics["again_rmsd_pm"] < 20
    assert metrics["multislice_correlation"] > metrics["multislice_model_correlation"] - 0.02
    assert metrics["multislice_between_correlation"] > 0.9
    rows = list(csv.DictReader((run / "verification.csv").open()))
    assert [int(row["image"]) for row in rows] == [1, 7]
    assert len(read_xyz(run / "verification.xyz")) == 19
    assert "Multislice check" in (run / "report.html").read_text()


def test_images_are_bright_where_heavy_atoms_stand() -> None:
    """Place, orientation of x and y, and contrast with the atomic number."""
    views = torch.tensor([[[-4.0, 0.0, 0.0], [4.0, 3.0, 0.0]]])
    (image,) = adf_images(["Si", "Au"], views, FAST, box_size=SIDE, pixel_size=PIXEL)
    y, x = np.unravel_index(int(image.argmax()), image.shape)
    assert (x, y) == (SIDE // 2 + 8, SIDE // 2 + 6)
    light = float(image[SIDE // 2 - 2 : SIDE // 2 + 3, SIDE // 2 - 10 : SIDE // 2 - 5].sum())
    heavy = float(image[y - 2 : y + 3, x - 2 : x + 3].sum())
    assert 1.4 < np.log(heavy / light) / np.log(79 / 14) < 2.0  # Rutherford's square, screened


def test_what_verification_needs_is_said() -> None:
    with pytest.raises(InputError, match="--element"):
        check_can_verify((), VerificationSettings(images=1))
    with pytest.raises(InputError, match="expected 0 or more"):
        VerificationSettings(images=-1)
    with pytest.raises(InputError, match="inner below outer"):
        AdfOptics(inner_mrad=90.0, outer_mrad=80.0)
