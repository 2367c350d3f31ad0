"""The tables and image stacks that the commands of a movie write."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from common.data import ImageStack, Optics, Poses
from common.io import ParticleFile, atomic_write, write_images, write_particles_star
from common.io.files import write_csv
from common.io.star import read_star, write_star
from spr.background import Background
from spr.cli.simulate import _without_poses as without_poses
from spr.frame_weights import FrameWeights
from spr.motion import Motion
from spr.movies import TrackedMovie


def write_text(path: Path, text: str) -> None:
    with atomic_write(path, "w") as file:
        file.write(text)


Rows = list[tuple[object, ...]]


def motion_table(motion: Motion) -> Rows:
    """Drift of every frame, angstrom."""
    both = torch.cat((motion.shifts, motion.errors), 1).tolist()
    rows = [(t, *(f"{number:.4f}" for number in row)) for t, row in enumerate(both, start=1)]
    return [("frame", "shift_x", "shift_y", "error_x", "error_y"), *rows]


def tracks_table(tracked: TrackedMovie) -> Rows:
    """Every particle in every frame, angstrom."""
    rows: Rows = [("frame", "particle", "x", "y", "error_x", "error_y", "seen", "weight", "reason")]
    for p, track in enumerate(tracked.tracks, start=1):
        both = torch.cat((track.positions, track.errors), 1).tolist()
        for t, numbers in enumerate(both):
            weight, reason = float(track.weights.weights[t]), track.weights.reasons[t]
            shown = (f"{number:.4f}" for number in numbers)
            rows.append((t + 1, p, *shown, int(track.seen[t]), f"{weight:.4f}", reason))
    return rows


def background_text(background: Background) -> str:
    sheets = [
        {
            "angle": round(lattice.angle, 4),
            "spacing": round(lattice.spacing, 5),
            "strain": round(lattice.strain, 6),
            "reciprocal": lattice.reciprocal.tolist(),
            "strength": lattice.strength,
        }
        for lattice in background.lattices
    ]
    spectrum = {"step": 0.01, "power": [float(f"{value:.6g}") for value in background.noise.tolist()]}
    return json.dumps({"graphene": sheets, "variance": background.variance, "spectrum": spectrum}, indent=2) + "\n"


def optics_of(n: int, voltage_kv: float, spherical_aberration_mm: float, defocus: float) -> Optics:
    """The same optics for n images; defocus in angstrom, positive = underfocus."""
    one = torch.ones(n)
    focus = torch.stack((one * defocus, one * defocus, one * 0), 1)
    return Optics(one * voltage_kv, one * spherical_aberration_mm, one * 0, focus, one * 0, one * 0)


def write_frames(folder: Path, stack: ImageStack, shifts: Tensor, weights: FrameWeights) -> None:
    """Write a particle's images, their table without orientations, and their weights.

    stack : n images with optics. shifts : (n, 2) of (x, y), angstrom, of the particle from the middle of the box.
    """
    n = len(stack)
    write_images(folder / "frames.mrcs", stack.images, stack.pixel_size)
    names = tuple(f"{t:06d}@frames.mrcs" for t in range(1, n + 1))
    particles = ParticleFile(stack, None, names, None, (folder / "frames.mrcs",), ())
    write_particles_star(folder / "frames.star", particles, Poses(torch.eye(3).expand(n, 3, 3), shifts))
    tables = read_star(folder / "frames.star").tables
    write_star(folder / "frames.star", tuple(without_poses(table) for table in tables))  # no pose is known yet
    pairs = zip(weights.weights.tolist(), weights.reasons, strict=True)
    rows = [(t, f"{weight:.4f}", reason) for t, (weight, reason) in enumerate(pairs, start=1)]
    write_csv(folder / "weights.csv", [("frame", "weight", "reason"), *rows])
