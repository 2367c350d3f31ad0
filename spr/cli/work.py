"""What the commands that work on particle images share: read, open the run folder, compute, write, finish."""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from common.cli.program import Parser, add_machine_arguments, choose_device, set_threads
from common.cli.progress import ProgressObserver
from common.cli.runs import Clock, keep_inputs, summarise, tell
from common.cli.settings import add_settings, read_settings
from common.io import ParticleFile, check_stack, read_particles, sha256
from common.io.checkpoint import is_first_process
from common.io.run_folder import RunFolder
from common.iteration import Observer
from common.parallel import processes
from spr.cli.outputs import write_outputs


@dataclass(frozen=True)
class InputSettings:
    """How the particle file is read.

    pixel_size : angstrom; wins over the file.
    voltage_kv : kV; wins over the file.
    spherical_aberration_mm : mm, negative for an overcorrected microscope; wins over the file.
    allow_outside : follow paths in the particle file that leave its folder.
    """

    pixel_size: float | None = None
    voltage_kv: float | None = None
    spherical_aberration_mm: float | None = None
    allow_outside: bool = False


Compute = Callable[[ParticleFile, Any, Sequence[Observer]], Any]


def load_pipeline() -> Any:
    """The module `spr.pipeline`, loaded only by the commands that need it."""
    return importlib.import_module("spr.pipeline")


def add_run_arguments(parser: Parser, settings: type, *, poses: bool = False) -> None:
    """The arguments of a command that reads PARTICLES and writes a run folder.

    settings : dataclass whose fields become options. poses : the particle file must hold poses.
    """
    parser.usage = "%(prog)s PARTICLES [--out RUN] [--pixel-size A] [--config FILE] [settings]"
    held = "a .star or .cs file with poses" if poses else "a .star, .mrcs, .mrc, .cs or TIFF stack"
    parser.add_argument("particles", metavar="PARTICLES", type=Path, help=held)
    parser.add_argument("--out", metavar="RUN", type=Path, help="folder of the run (default: PARTICLES_run beside it)")
    parser.add_argument("--config", metavar="FILE", type=Path, help="settings from a TOML file or a run.json")
    parser.add_argument("--overwrite", action="store_true", help="replace the run that is in RUN")
    add_machine_arguments(parser)
    add_settings(parser, InputSettings, section="input")
    add_settings(parser, settings)


def run_work(
    arguments: argparse.Namespace,
    command: str,
    settings_kind: type,
    compute: Compute,
    *,
    extra_inputs: Sequence[Path] = (),
    write: Callable[..., None] = write_outputs,
) -> int:
    """Read the particles, open or resume the run folder, compute, and write everything.

    Parameters
    ----------
    arguments : of `add_run_arguments`.
    command : the subcommand.
    settings_kind : the dataclass of settings.
    compute : (particle file, settings, observers) -> result.
    extra_inputs : further files that the result depends on.
    write : writes the result, as `spr.cli.outputs.write_outputs`.
    """
    chosen = read_settings({"input": InputSettings, "": settings_kind}, arguments, arguments.config)
    reading, settings = chosen["input"], chosen[""]
    out = arguments.out or arguments.particles.with_name(f"{arguments.particles.stem}_run")
    set_threads(arguments.threads)
    clock = Clock()
    with processes(choose_device(arguments.device)) as device:
        particles = read_particles(arguments.particles, **asdict(reading))
        files = (*particles.files, *extra_inputs)
        keep_inputs(out, files)
        warnings = check_stack(particles.stack, particles.image_names, source=str(arguments.particles))
        inputs = {os.path.relpath(file): sha256(file) for file in files}
        described = {"input": asdict(reading), **asdict(settings)}
        folder = RunFolder.open(
            out, inputs=inputs, settings=described, command=command, device=device.type, overwrite=arguments.overwrite
        )
        with folder:
            if folder.is_complete:
                tell(f"{out}: this run has ended ({folder.status}); --overwrite begins anew")
                summarise(folder, notes=folder.record.get("notes", ()))
                return 0
            progress = ProgressObserver()
            on_device = replace(particles, stack=particles.stack.to(device))
            metrics, checkpoints = folder.observers()
            try:
                with folder.computing(arguments.particles):
                    result = compute(on_device, settings, (metrics, checkpoints, progress))
            except KeyboardInterrupt:
                checkpoints.save_all()
                raise
            seconds = clock.seconds(progress.seconds)
            if is_first_process():
                write(folder, particles, result, extra_warnings=warnings, seconds=seconds)
                summarise(folder, notes=folder.record.get("notes", ()))
    return 0
