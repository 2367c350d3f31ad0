"""The tables of one particle of a movie: orientations, structures by time window, their agreement."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from common.rotations import geodesic_distance, matrix_to_euler
from spr.cli.movie_tables import Rows
from spr.movie_pipeline import ParticleInTime
from spr.time_windows import Window, WindowFSC


def orientations_table(found: ParticleInTime, frames: Tensor) -> Rows:
    """Euler angles (RELION), the particle's centre in the box and the step from the last frame, of the frames used."""
    poses, atoms = found.reconstruction.poses, found.reconstruction.atoms
    if poses is None:
        raise ValueError("no poses were found")
    angles, shifts = matrix_to_euler(poses.rotations.cpu()), poses.shifts.cpu()
    if atoms is not None:
        middle = torch.from_numpy(atoms.positions.mean(0)).to(poses.rotations)
        shifts = shifts + (poses.rotations @ middle)[:, :2].cpu()
    steps = [
        f"{step:.4f}" for step in geodesic_distance(poses.rotations[1:].cpu(), poses.rotations[:-1].cpu()).tolist()
    ]
    numbers = torch.cat((angles, shifts), 1).tolist()
    rows = [
        (t + 1, *(f"{number:.4f}" for number in row), turned)
        for t, row, turned in zip(frames.tolist(), numbers, ["", *steps], strict=True)
    ]
    return [("frame", "rot", "tilt", "psi", "x", "y", "turned"), *rows]


def windows_table(windows: Sequence[Window]) -> Rows:
    """Every atom of every window; atoms are counted from 1, in the order of atoms.xyz; "new" for those not there."""
    names = ("atom", "x", "y", "z", "sigma", "moved_x", "moved_y", "moved_z", "chance", "significant", "nats", "gone")
    lines: Rows = [("window", "first_frame", "last_frame", *names)]
    for k, window in enumerate(windows, start=1):
        table = torch.cat((window.positions, window.sigma[:, None], window.moved), 1).tolist()
        columns = (window.chance, window.significant, window.lost, window.gone)
        rows = zip(table, *(column.tolist() for column in columns), strict=True)
        span = (k, window.first + 1, window.last + 1)
        for atom, (numbers, chance, significant, lost, gone) in enumerate(rows, start=1):
            shown = (f"{number:.4f}" for number in numbers)
            lines.append((*span, atom, *shown, f"{chance:.3g}", int(significant), f"{lost:.1f}", int(gone)))
        for place, nats in zip(window.new.tolist(), window.gained.tolist(), strict=True):
            lines.append((*span, "new", *(f"{x:.4f}" for x in place), *[""] * 6, f"{nats:.1f}", ""))
    return lines


def agreement_table(agreement: Sequence[WindowFSC]) -> Rows:
    """Fourier shell correlation of every pair of windows that share no frame; windows are counted from 1."""
    names = (f"window_{each.first + 1}_{each.second + 1}" for each in agreement)
    columns = (agreement[0].fsc.frequencies, *(each.fsc.correlation for each in agreement))
    rows = [tuple(f"{value:.6f}" for value in row) for row in zip(*(c.tolist() for c in columns), strict=True)]
    return [("frequency_per_angstrom", *names), *rows]
