"""What the commands that work on a tilt series share: read, open the run folder, compute, write, finish."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from aet_tilt.cli.outputs import write_outputs
from aet_tilt.result import Reconstruction
from aet_tilt.settings import Settings
from common.cli.program import Parser, add_machine_arguments, choose_device, set_threads
from common.cli.progress import ProgressObserver
from common.cli.runs import Clock, keep_inputs, summarise, tell
from common.cli.settings import add_settings, read_settings
from common.data import Poses
from common.io import sha256
from common.io.checkpoint import is_first_process
from common.io.run_folder import RunFolder
from common.io.tilt_series import TiltFile, read_tilt_series
from common.iteration import Observer
from common.parallel import processes


@dataclass(frozen=True)
class InputSettings:
    """How the tilt series is read.

    angles : file of tilt angles or Euler triplets; none: found beside the images.
    pixel_size : angstrom; wins over the file.
    tilt_axis : degrees from y to the tilt axis.
    tilt_sign : 1 or -1, multiplied onto the angles.
    focus : file of the focus of each image, angstrom, one a line: a through-focal series.
    """

    angles: str | None = None
    pixel_size: float | None = None
    tilt_axis: float | None = None
    tilt_sign: int | None = None
    focus: str | None = None


Compute = Callable[[TiltFile, Settings, Sequence[Observer]], Reconstruction]


def read_input(path: Path, settings: InputSettings) -> TiltFile:
    return read_tilt_series(path, **asdict(settings))


def add_run_arguments(parser: Parser) -> None:
    """The arguments of a command that reads TILTS and writes a run folder."""
    parser.usage = "%(prog)s TILTS [--angles FILE] [--pixel-size A] [--elements Pd,Au] [--out RUN] [settings]"
    parser.add_argument("tilts", metavar="TILTS", type=Path, help="an MRC or TIFF stack, .mat, .npy or microscope file")
    parser.add_argument("--element", metavar="EL", help="the one element that is there; the same as --elements EL")
    parser.add_argument("--out", metavar="RUN", type=Path, help="folder of the run (default: TILTS_run beside it)")
    parser.add_argument("--config", metavar="FILE", type=Path, help="settings from a TOML file or a run.json")
    parser.add_argument("--overwrite", action="store_true", help="replace the run that is in RUN")
    add_machine_arguments(parser)
    add_settings(parser, InputSettings, section="input")
    add_settings(parser, Settings)


def run_work(
    arguments: argparse.Namespace, command: str, compute: Compute, *, extra_inputs: Sequence[Path] = ()
) -> int:
    """Read the tilt series, open or resume the run folder, compute, and write everything.

    Parameters
    ----------
    arguments : of `add_run_arguments`.
    command : the subcommand.
    compute : (tilt series, settings, observers) -> result.
    extra_inputs : further files that the result depends on.
    """
    chosen = read_settings({"input": InputSettings, "": Settings}, arguments, arguments.config)
    reading, settings = chosen["input"], chosen[""]
    # Pd,Au is one word on the command line
    settings = replace(settings, elements=tuple(",".join(settings.elements).split(",")) if settings.elements else ())
    if arguments.element:
        settings = replace(settings, elements=(arguments.element,))
    out = arguments.out or arguments.tilts.with_name(f"{arguments.tilts.stem}_run")
    set_threads(arguments.threads)
    clock = Clock()
    with processes(choose_device(arguments.device)) as device:
        found = read_input(arguments.tilts, reading)
        files = [file for file in (*found.files, *extra_inputs) if file.is_file()]
        keep_inputs(out, files)
        opened = RunFolder.open(
            out,
            inputs={os.path.relpath(file): sha256(file) for file in files},
            settings={"input": asdict(reading), **asdict(settings)},
            command=command,
            device=device.type,
            overwrite=arguments.overwrite,
        )
        with opened as folder:
            if folder.is_complete:
                tell(f"{out}: this run has ended ({folder.status}); --overwrite begins anew")
                summarise(folder)
                return 0
            for note in found.notes:
                tell(f"note: {note}")
            progress = ProgressObserver()
            metrics, checkpoints = folder.observers()
            poses = Poses(found.poses.rotations.to(device), found.poses.shifts.to(device))
            here = replace(found, stack=found.stack.to(device), poses=poses)
            try:
                with folder.computing(arguments.tilts):
                    result = compute(here, settings, (metrics, checkpoints, progress))
            except KeyboardInterrupt:
                checkpoints.save_all()
                raise
            seconds = clock.seconds(progress.seconds)
            if is_first_process():
                write_outputs(folder, found, result, seconds=seconds)
                summarise(folder)
    return 0
