"""Time of the parts that everything else is made of, one thread."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from common.atoms.comparison import compare
from common.atoms.tracing import TracingSettings, trace
from common.data import Volume
from common.noise import estimate_noise, whiten
from common.projection import backproject, project
from common.reconstruction import reconstruct
from common.resolution import fourier_shell_correlation
from common.simulation import simulate_images
from common.specimens import gold_cluster


def seconds(function: Callable[[], object], repeats: int = 3) -> float:
    """CPU seconds of the fastest of a few calls, after one to warm up."""
    function()
    times = []
    for _ in range(repeats):
        began = time.process_time()
        function()
        times.append(time.process_time() - began)
    return min(times)


def measure(n_images: int = 256, box_size: int = 80) -> list[tuple[str, str]]:
    """(what, time) for each part.

    Parameters
    ----------
    n_images, box_size : of the simulated stack of a 68-atom cluster at 0.35 angstrom.
    """
    generator = torch.Generator().manual_seed(1)
    atoms = gold_cluster(68, generator=generator)
    size = {"box_size": box_size, "pixel_size": 0.35}
    flat = simulate_images(atoms, n_images, model="projection", snr=1.0, generator=generator, **size)
    counts = simulate_images(atoms, 64, model="phase_object", dose=800.0, generator=generator, **size)
    volume = reconstruct(flat.stack, flat.poses)
    noise = estimate_noise(counts.stack)
    each: list[tuple[str, Callable[[], object], int]] = [
        ("project", lambda: project(volume, flat.poses), n_images),
        ("backproject", lambda: backproject(flat.stack, flat.poses), n_images),
        ("reconstruct, poses known", lambda: reconstruct(flat.stack, flat.poses), n_images),
        ("whiten", lambda: whiten(counts.stack, noise), len(counts.stack)),
        (
            "simulate a phase object",
            lambda: simulate_images(atoms, 64, model="phase_object", dose=800.0, generator=generator, **size),
            64,
        ),
    ]
    rows = [(f"{name}, an image", f"{1000 * seconds(call) / n:.2f} ms") for name, call, n in each]
    other = Volume(volume.values.flip(0), volume.voxel_size)
    rows.append(("FSC of two maps", f"{1000 * seconds(lambda: fourier_shell_correlation(volume, other)):.0f} ms"))
    rows.append(("trace a map", f"{seconds(lambda: trace(volume, TracingSettings(element='Au')), 1):.1f} s"))
    rows.append(("compare two lists of atoms", f"{seconds(lambda: compare(atoms, atoms), 1):.1f} s"))
    return rows
