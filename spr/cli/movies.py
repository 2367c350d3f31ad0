"""``spr track``, ``spr background`` and ``spr extract``: the first stages of a movie, alone."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from common.cli.program import Parser, add_threads_argument, set_threads
from common.cli.runs import refuse_to_replace
from common.cli.settings import add_settings, read_settings
from common.data import InputError
from common.io.checkpoint import make_folder
from common.io.files import write_csv
from common.io.movie import Movie, read_movie
from spr.background import block_means, learn_background
from spr.cli.movie_tables import background_text, motion_table, optics_of, tracks_table, write_frames, write_text
from spr.motion import estimate_motion
from spr.movies import MovieSettings, TrackedMovie, extract, track_movie

OUTPUTS = {
    "background": ("motion.csv", "background.json"),
    "track": ("motion.csv", "background.json", "tracks.csv"),
    "extract": ("motion.csv", "background.json", "tracks.csv", "particle_001"),
}


@dataclass(frozen=True)
class MovieInput:
    """How the movie is read.

    pixel_size : angstrom; wins over the file.
    dose : electrons/angstrom^2 per stored frame.
    gain : file of the gain reference.
    gain_divides : divide by the gain reference instead of multiplying.
    sum_frames : stored frames that are added up to one.
    find_defects : look for hot and dead pixels.
    voltage_kv : kV, for the STAR file of the particles.
    spherical_aberration_mm : mm, for the STAR file.
    defocus : angstrom, positive = underfocus, for the STAR file.
    """

    pixel_size: float | None = None
    dose: float | None = None
    gain: str | None = None
    gain_divides: bool = False
    sum_frames: int = 1
    find_defects: bool = True
    voltage_kv: float = 300.0
    spherical_aberration_mm: float = -0.008
    defocus: float = -60.0


def add_arguments(parser: Parser, name: str) -> None:
    parser.add_argument("movie", metavar="MOVIE", help="an .mrc, .tif, .eer, .dm4 or .emd file, or 'frames/*.tif'")
    parser.add_argument("--out", metavar="RUN", type=Path, required=True, help=f"gets {', '.join(OUTPUTS[name])}")
    parser.add_argument("--overwrite", action="store_true", help="replace the files of an earlier run")
    parser.add_argument("--config", metavar="FILE", type=Path, help="settings from a TOML file")
    add_threads_argument(parser)
    if name != "background":
        text = "positions of the particles in the first frames, two columns x y in pixels (default: found)"
        parser.add_argument("--box-file", metavar="FILE", type=Path, help=text)
    add_settings(parser, MovieInput, section="input")
    add_settings(parser, MovieSettings)


def movie_of(path: str, given: MovieInput) -> Movie:
    """The movie as the settings of its input say; errors as for `read_movie`."""
    return read_movie(
        path,
        pixel_size=given.pixel_size,
        dose=given.dose,
        gain=given.gain,
        gain_divides=given.gain_divides,
        sum_frames=given.sum_frames,
        find_defects=given.find_defects,
    )


def run(arguments: argparse.Namespace, name: str) -> int:
    chosen = read_settings({"input": MovieInput, "": MovieSettings}, arguments, arguments.config)
    given: MovieInput = chosen["input"]
    settings: MovieSettings = chosen[""]
    out: Path = arguments.out
    refuse_to_replace(out, OUTPUTS[name], overwrite=arguments.overwrite)
    set_threads(arguments.threads)
    movie = movie_of(arguments.movie, given)
    if name == "background":
        motion = estimate_motion(movie, settings.motion)
        free = torch.ones(movie.frame_shape)
        background = learn_background(movie, motion, free, settings.graphene, means=block_means(movie, motion))
        notes: tuple[str, ...] = (*movie.notes, *motion.notes)
        make_folder(out)
    else:
        positions = None if arguments.box_file is None else positions_of(arguments.box_file) * movie.pixel_size
        tracked = track_movie(movie, settings, positions=positions)
        motion, background, notes = tracked.motion, tracked.background, tracked.notes
        make_folder(out)
        if name == "extract":
            _write_particles(out, movie, tracked, settings, given)
        write_csv(out / "tracks.csv", tracks_table(tracked))
        print(f"{len(tracked.tracks)} particles: {out / 'tracks.csv'}")
    write_csv(out / "motion.csv", motion_table(motion))
    write_text(out / "background.json", background_text(background))
    for note in notes:
        print(f"note: {note}")
    for k, lattice in enumerate(background.lattices, start=1):
        print(f"graphene sheet {k}: {lattice.angle:.2f} degrees, {lattice.spacing:.4f} A, strain {lattice.strain:.4f}")
    return 0


def positions_of(path: Path) -> torch.Tensor:
    """Two columns x y, pixels from the first; (m, 2)."""
    try:
        lines = [line.split() for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
        values = torch.tensor([[float(word) for word in line[:2]] for line in lines])
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as two columns x y in pixels ({error})") from None
    if values.ndim != 2 or values.shape[1:] != (2,):
        raise InputError(f"{path}: holds {len(lines)} lines, expected two columns x y in pixels, one line a particle")
    return values


def _write_particles(
    out: Path, movie: Movie, tracked: TrackedMovie, settings: MovieSettings, given: MovieInput
) -> None:
    optics = optics_of(len(movie), given.voltage_kv, given.spherical_aberration_mm, given.defocus)
    for k, (stack, shifts) in enumerate(extract(movie, tracked, settings), start=1):
        folder = out / f"particle_{k:03d}"
        make_folder(folder)
        write_frames(folder, replace(stack, optics=optics), shifts, tracked.tracks[k - 1].weights)
