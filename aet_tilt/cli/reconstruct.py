"""``aet-tilt reconstruct``: a tilt series to atoms with error bars."""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from aet_tilt import pipeline
from aet_tilt.cli.outputs import write_outputs
from common.cli.program import Parser, choose_device, set_threads
from common.cli.progress import ProgressObserver
from common.cli.settings import add_settings, read_settings
from common.data import InputError, Poses
from common.io import sha256
from common.io.run_folder import OUTPUTS, RunFolder
from common.io.tilt_series import TiltFile, read_tilt_series


@dataclass(frozen=True)
class InputSettings:
    """How the tilt series is read.

    angles : file of tilt angles or Euler triplets; none: found beside the images.
    pixel_size : angstrom; wins over the file.
    tilt_axis : degrees from y to the tilt axis.
    tilt_sign : 1 or -1, multiplied onto the angles.
    """

    angles: str | None = None
    pixel_size: float | None = None
    tilt_axis: float | None = None
    tilt_sign: int | None = None


def read_input(path: Path, settings: InputSettings) -> TiltFile:
    return read_tilt_series(path, **asdict(settings))


def add_arguments(parser: Parser, name: str) -> None:
    parser.usage = "%(prog)s TILTS [--angles FILE] [--pixel-size A] [--elements Pd,Au] [--method M] [settings]"
    parser.add_argument("tilts", metavar="TILTS", type=Path, help="an MRC or TIFF stack, .mat, .npy or microscope file")
    parser.add_argument("--element", metavar="EL", help="the one element that is there; the same as --elements EL")
    parser.add_argument("--out", metavar="RUN", type=Path, help="folder of the run (default: TILTS_run beside it)")
    parser.add_argument("--config", metavar="FILE", type=Path, help="settings from a TOML file or a run.json")
    parser.add_argument("--overwrite", action="store_true", help="replace the run that is in RUN")
    group = parser.add_argument_group("machine")
    group.add_argument("--device", metavar="auto|cpu|cuda", default="auto", help="where to compute (default: auto)")
    group.add_argument("--threads", metavar="N", type=int, default=1, help="CPU threads (default: 1)")
    add_settings(parser, InputSettings, section="input")
    add_settings(parser, pipeline.Settings)


def run(arguments: argparse.Namespace, name: str) -> int:
    chosen = read_settings({"input": InputSettings, "": pipeline.Settings}, arguments, arguments.config)
    reading, settings = chosen["input"], chosen[""]
    # Pd,Au is one word on the command line
    settings = replace(settings, elements=tuple(",".join(settings.elements).split(",")) if settings.elements else ())
    if arguments.element:
        settings = replace(settings, elements=(arguments.element,))
    out = arguments.out or arguments.tilts.with_name(f"{arguments.tilts.stem}_run")
    set_threads(arguments.threads)
    device = choose_device(arguments.device)
    began = (time.time(), time.process_time())
    found = read_input(arguments.tilts, reading)
    targets = {os.path.realpath(out / output) for output in OUTPUTS}
    for file in found.files:
        if os.path.realpath(file) in targets:
            raise InputError(f"{out}: the run would write over its input {file.name}; choose another folder with --out")
    inputs = {os.path.relpath(file): sha256(file) for file in found.files if file.is_file()}
    described = {"input": asdict(reading), **asdict(settings)}
    opened = RunFolder.open(
        out, inputs=inputs, settings=described, command=name, device=device.type, overwrite=arguments.overwrite
    )
    with opened as folder:
        if folder.is_complete:
            print(f"{out}: this run has ended ({folder.status}); --overwrite begins anew")
            return 0
        for note in found.notes:
            print(f"note: {note}")
        progress = ProgressObserver()
        metrics, checkpoints = folder.observers()
        poses = Poses(found.poses.rotations.to(device), found.poses.shifts.to(device))
        try:
            result = pipeline.reconstruct(
                found.stack.to(device),
                poses,
                settings,
                measured=found.measured.to(device),
                observers=(metrics, checkpoints, progress),
            )
        except KeyboardInterrupt:
            checkpoints.save_all()
            raise
        seconds = {
            **progress.seconds,
            "cpu_seconds": time.process_time() - began[1],
            "wall_seconds": time.time() - began[0],
        }
        write_outputs(folder, found, result, seconds=seconds)
        for key, value in folder.record["metrics"].items():
            print(f"{key}: {value:.4g}")
        for warning in folder.record["warnings"]:
            print(f"warning: {warning}")
        print(f"{folder.status}: {folder.path}")
    return 0
