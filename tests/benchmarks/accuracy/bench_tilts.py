"""All of ``aet-tilt reconstruct`` on simulated tilt series: how many atoms are right, and how near the bound."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from aet_tilt.cli import main as aet_tilt
from common.io import read_xyz

COLUMNS = (
    "tilt series", "atoms right", "false", "RMSD, pm", "bound, pm", "ratio", "error / sigma, rms", "held-out R1",
    "CPU s",
)  # fmt: skip

CASES = {
    "400 Au, 41 images +-70 degrees, 200 counts": [],
    "400 Au, 31 images +-63 degrees, 20 counts": [
        "--n-images", "31", "--tilt-range", "-63", "63", "--imaging.brightest", "20", "--imaging.background", "0.5",
    ],
    "400 Au, 41 images +-70 degrees, 200 counts, tilts off by 0.15 degrees": ["--angle-sigma", "0.15"],
    "400 Au, 21 tilts +-60 degrees at 3 foci 40 angstrom apart, 60 counts": [
        "--n-images", "21", "--tilt-range", "-60", "60", "--foci", "-40", "0", "40", "--imaging.opening", "0.012",
        "--imaging.brightest", "60",
    ],
    "20,000 Au in 290 pixels, 41 images +-70 degrees, 200 counts": ["--n-atoms", "20000", "--box-size", "290"],
}  # fmt: skip


def run_case(folder: Path, name: str, seed: int) -> tuple[str, ...]:
    """Simulate, reconstruct and score one series; a row of the table."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if aet_tilt(["simulate", "--out", str(folder), "--seed", str(seed), *CASES[name]]):
        raise RuntimeError(f"{name}: the simulation failed")
    foci = ["--focus", str(folder / "foci.txt")] if "--foci" in CASES[name] else []
    if aet_tilt(["reconstruct", str(folder / "tilts.mrc"), "--element", "Au", *foci, "--out", str(folder / "run")]):
        raise RuntimeError(f"{name}: the reconstruction failed")
    found, truth = read_xyz(folder / "run" / "atoms.xyz"), read_xyz(folder / "truth.xyz")
    record = json.loads((folder / "run" / "run.json").read_text())
    tree = cKDTree(truth.positions)
    near, index = tree.query(found.positions)
    # images leave a common shift of all atoms open
    moved = found.positions - np.median((found.positions - truth.positions[index])[near < 1.2], axis=0)
    near, index = tree.query(moved)
    right = (near < 0.5) & (np.bincount(index, minlength=len(truth))[index] == 1)
    off = (moved - truth.positions[index])[right]
    off -= off.mean(0)
    sigma = found.arrays["position_sigma"][right]
    rmsd, bound = 100 * math.sqrt((off**2).sum(1).mean()), record["metrics"]["position_bound_pm"]
    return (
        name, f"{right.sum()} of {len(truth)}", str(int((~right).sum())), f"{rmsd:.2f}", f"{bound:.2f}",
        f"{rmsd / bound:.2f}", f"{math.sqrt((off**2).mean() / (sigma**2).mean()):.2f}",
        f"{record['metrics']['held_out_r1']:.3f}", f"{record['timing']['cpu_seconds']:.0f}",
    )  # fmt: skip
