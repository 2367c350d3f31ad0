"""``spr movie``: a liquid-cell movie to the atoms of every particle in it."""

from __future__ import annotations

import argparse
import csv
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.cli.program import Parser, add_machine_arguments, choose_device, set_threads
from common.cli.progress import ProgressObserver
from common.cli.runs import Clock, require_one_process
from common.cli.settings import add_settings, read_settings
from common.cli.workers import free_cores, side_by_side
from common.data import InputError
from common.io import ParticleFile, read_particles, sha256
from common.io.files import write_csv
from common.io.movie import Movie
from common.io.run_folder import RunFolder
from common.iteration import run_stage
from common.parallel import processes
from common.report import Inputs, ReportData, write_report
from common.report.results import input_files
from spr.cli.movie_page import filmed, way_of
from spr.cli.movie_tables import background_text, motion_table, optics_of, tracks_table, write_frames, write_text
from spr.cli.movies import MovieInput, movie_of, positions_of
from spr.cli.outputs import write_outputs
from spr.cli.particle_tables import agreement_table, orientations_table, windows_table
from spr.cli.structures import select_particles
from spr.movie_pipeline import MovieRoadSettings, reconstruct_in_time
from spr.movies import Track, TrackedMovie, extract, track_movie


def add_arguments(parser: Parser, name: str) -> None:
    parser.usage = "%(prog)s MOVIE [--pixel-size A] [--dose E] [--element Pt] [--out RUN] [--config FILE] [settings]"
    parser.add_argument("movie", metavar="MOVIE", help="an .mrc, .tif, .eer, .dm4 or .emd file, or 'frames/*.tif'")
    parser.add_argument("--out", metavar="RUN", type=Path, help="folder of the run (default: MOVIE_run beside it)")
    parser.add_argument("--overwrite", action="store_true", help="replace the run that is in RUN")
    parser.add_argument("--config", metavar="FILE", type=Path, help="settings from a TOML file or a run.json")
    text = "positions of the particles in the first frames, two columns x y in pixels (default: found)"
    parser.add_argument("--box-file", metavar="FILE", type=Path, help=text)
    machine = add_machine_arguments(parser)
    several = "particles at a time, each in a process (default: as many as there are free CPU cores; on a GPU 1)"
    machine.add_argument("--jobs", metavar="N", type=int, default=0, help=several)
    add_settings(parser, MovieInput, section="input")
    add_settings(parser, MovieRoadSettings)


def run(arguments: argparse.Namespace, name: str) -> int:
    chosen = read_settings({"input": MovieInput, "": MovieRoadSettings}, arguments, arguments.config)
    given: MovieInput = chosen["input"]
    settings: MovieRoadSettings = chosen[""]
    out: Path = arguments.out or _beside(arguments.movie)
    require_one_process("spr movie")
    threads = set_threads(arguments.threads)
    if arguments.jobs < 0:
        raise InputError(f"--jobs is {arguments.jobs}, expected 0 (automatic) or more")
    clock = Clock()
    with processes(choose_device(arguments.device)) as device:
        movie = movie_of(arguments.movie, given)
        positions = None if arguments.box_file is None else positions_of(arguments.box_file) * movie.pixel_size
        files = [*movie.files, *([] if arguments.box_file is None else [arguments.box_file])]
        inputs = {os.path.relpath(file): sha256(file) for file in files}
        described = {"input": asdict(given), **asdict(settings)}

        def opened(path: Path) -> RunFolder:
            return RunFolder.open(
                path,
                inputs=inputs,
                settings=described,
                command=name,
                device=device.type,
                overwrite=arguments.overwrite and path == out,
            )

        with opened(out) as folder:
            if folder.is_complete:
                print(f"{out}: this run has ended ({folder.status}); --overwrite begins anew")
                return 0
            progress = ProgressObserver()
            metrics, checkpoints = folder.observers()
            watching = (metrics, checkpoints, progress)
            tracked = run_stage("track", lambda: track_movie(movie, settings.movie, positions=positions), watching)
            write_csv(folder.file("motion.csv"), motion_table(tracked.motion))
            write_text(folder.file("background.json"), background_text(tracked.background))
            write_csv(folder.file("tracks.csv"), tracks_table(tracked))
            print(f"{len(tracked.tracks)} particles: {folder.file('tracks.csv')}")
            tasks: list[tuple[_Task]] = []
            for k, (stack, shifts) in enumerate(extract(movie, tracked, settings.movie), start=1):
                with opened(out / f"particle_{k:03d}") as own:
                    weights = tracked.tracks[k - 1].weights
                    if not own.is_complete:
                        optics = optics_of(len(stack), given.voltage_kv, given.spherical_aberration_mm, given.defocus)
                        write_frames(own.path, replace(stack, optics=optics), shifts, weights)
                    run_of_it = {"inputs": inputs, "settings": described, "command": name, "device": device.type}
                    tasks.append((_Task(k, own.path, run_of_it, shifts.tolist(), weights.weights.tolist()),))
            fitting = 1 if device.type == "cuda" else max(1, free_cores() // max(1, arguments.threads))
            jobs = max(1, min(arguments.jobs or fitting, len(tasks)))
            each = arguments.threads or max(1, threads // jobs)
            work = partial(_one_particle, settings=settings, device=str(device), threads=each, alone=jobs == 1)
            results = []
            for k, result in enumerate(side_by_side(work, tasks, jobs), start=1):
                results.append(result)
                print(f"particle {k}: {result[0]}, {out / f'particle_{k:03d}' / 'report.html'}")
            tracked = replace(tracked, tracks=_centred(tracked.tracks, tasks))
            write_csv(folder.file("tracks.csv"), tracks_table(tracked))
            _finish(folder, movie, tracked, results, given, clock.seconds(progress.seconds))
            print(f"{folder.status}: {folder.path}\nreport: {folder.file('report.html')}")
    return 0


def _beside(movie: str) -> Path:
    """The run's folder where none is given; a pattern of files names its folder."""
    path = Path(movie)
    return path.parent / "movie_run" if any(mark in path.name for mark in "*?[") else path.with_name(f"{path.stem}_run")


@dataclass(frozen=True)
class _Task:
    """What another process is told of a particle: its number and folder, its run, shifts (n, 2) and weights (n,)."""

    number: int
    folder: Path
    run: dict[str, Any]
    shifts: list[list[float]]
    weights: list[float]


_Result = tuple[str, Mapping[str, float], bool]  # status, metrics, determined


def _one_particle(task: _Task, *, settings: MovieRoadSettings, device: str, threads: int, alone: bool) -> _Result:
    """Reconstruct one particle, whose frames are in its folder, and write everything about it."""
    set_threads(threads)
    with RunFolder.open(task.folder, **task.run) as folder:
        if not folder.is_complete:
            particles = read_particles(folder.file("frames.star"))
            shifts, weights = torch.tensor(task.shifts), torch.tensor(task.weights)
            title = f"particle {task.number}: "
            progress = ProgressObserver(title=title, bars=None if alone else False)
            _reconstruct(folder, particles, shifts, weights, settings, torch.device(device), progress)
        return folder.status, folder.record["metrics"], folder.status == "finished"


def _reconstruct(
    folder: RunFolder,
    particles: ParticleFile,
    shifts: Tensor,
    weights: Tensor,
    settings: MovieRoadSettings,
    device: torch.device,
    progress: ProgressObserver,
) -> None:
    began = time.process_time()
    rows = (weights > 0).nonzero()[:, 0]
    shown = select_particles(particles, rows)
    metrics, checkpoints = folder.observers()
    watching = (metrics, checkpoints, progress)
    try:
        found = reconstruct_in_time(shown.stack.to(device), rows, shifts[rows].to(device), settings, observers=watching)
    except InputError as error:  # another particle of the movie may well be found
        _write_nothing(folder, particles, str(error))
        return
    except KeyboardInterrupt:
        checkpoints.save_all()
        raise
    if found.reconstruction.poses is not None:
        write_csv(folder.file("orientations.csv"), orientations_table(found, rows))
    if found.windows and found.reconstruction.atoms is not None:
        write_csv(folder.file("windows.csv"), windows_table(found.windows))
    if found.agreement:
        write_csv(folder.file("windows_fsc.csv"), agreement_table(found.agreement))
    seconds = {**progress.seconds, "cpu_seconds": time.process_time() - began}
    write_outputs(folder, shown, found.reconstruction, seconds=seconds)


def _centred(tracks: Sequence[Track], tasks: Sequence[tuple[_Task]]) -> tuple[Track, ...]:
    """The tracks through the centres of the atoms, where atoms were found and placed."""
    found = []
    for track, (task,) in zip(tracks, tasks, strict=True):
        table = task.folder / "orientations.csv"
        if (task.folder / "atoms.xyz").exists() and table.exists():
            with table.open(newline="") as file:
                rows = [(int(row["frame"]) - 1, float(row["x"]), float(row["y"])) for row in csv.DictReader(file)]
            frames = torch.tensor([t for t, _, _ in rows])
            centre = torch.tensor([[x, y] for _, x, y in rows])
            boxes = track.positions - torch.tensor(task.shifts)
            track = replace(track, positions=track.positions.index_copy(0, frames, boxes[frames] + centre))
        found.append(track)
    return tuple(found)


def _write_nothing(folder: RunFolder, particles: ParticleFile, reason: str) -> None:
    """The record and the page of a particle that cannot be looked at."""
    warning = f"Not determined: {reason}"
    page = ReportData(particles.files[0].name, warning, "not determined", (warning,), date=time.strftime("%Y-%m-%d"))
    write_report(folder.file("report.html"), page)
    folder.finish(metrics={"images": float(len(particles.stack))}, warnings=(warning,), determined=False)


def _finish(
    folder: RunFolder,
    movie: Movie,
    tracked: TrackedMovie,
    results: Sequence[tuple[str, Mapping[str, float], bool]],
    given: MovieInput,
    seconds: Mapping[str, float],
) -> None:
    """The page and the record of the whole movie."""
    settled = sum(determined for _, _, determined in results)
    warnings = tuple(
        f"Particle {k} is not determined: see particle_{k:03d}/report.html."
        for k, (_, _, determined) in enumerate(results, start=1)
        if not determined
    )
    record = folder.record
    page = ReportData(
        title=movie.files[0].name,
        verdict=f"{len(results)} particles followed; the atoms of {settled} of them found.",
        outcome="determined" if not warnings else "doubtful" if settled else "not determined",
        warnings=warnings,
        notes=tracked.notes,
        command=shlex.join(["spr", *sys.argv[1:]]),
        date=time.strftime("%Y-%m-%d"),
        inputs=Inputs(
            input_files(record["inputs"]),
            len(movie),
            max(movie.frame_shape),
            movie.pixel_size,
            optics_of(1, given.voltage_kv, given.spherical_aberration_mm, given.defocus),
        ),
        settings=record["settings"],
        versions=record["versions"],
        seconds=seconds,
        movie=filmed(movie, tracked, results),
    )
    write_report(folder.file("report.html"), page)
    counts = {
        f"particle_{k}_{name}": value
        for k, track in enumerate(tracked.tracks, start=1)
        for name, value in way_of(track)
    }
    counts |= {"particles": float(len(results)), "particles_determined": float(settled), "frames": float(len(movie))}
    folder.finish(metrics=counts, warnings=warnings, notes=tracked.notes, determined=not warnings, timing=seconds)
