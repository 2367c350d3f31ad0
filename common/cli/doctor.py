"""What this installation can do: versions, device, memory, disk, extras."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from common.io.run_record import NOT_INSTALLED, package_version

NEEDED = (
    "torch",
    "numpy",
    "scipy",
    "ase",
    "gemmi",
    "matplotlib",
    "mrcfile",
    "safetensors",
    "scikit-learn",
    "tifffile",
    "tqdm",
)
EXTRAS = {"rosettasciio": ("formats", ".dm3, .dm4, .emd, .ser files"), "abTEM": ("multislice", "multislice simulation")}


@dataclass(frozen=True)
class Finding:
    """One line of the check. fine : nothing needs to be done; text : what was found, and what to do."""

    fine: bool
    name: str
    text: str


def examine(folder: Path) -> list[Finding]:
    """Check this installation.

    Parameters
    ----------
    folder : where a run would be written.
    """
    found = [Finding(sys.version_info >= (3, 11), "python", f"{platform.python_version()}, {platform.platform()}")]
    for name in ("nanospr", *NEEDED):
        text = package_version(name)
        fine = text != NOT_INSTALLED
        found.append(Finding(fine, name, text if fine else f"{text}: pip install nanospr"))
    for name, (extra, use) in EXTRAS.items():
        text = package_version(name)
        text += f", needed for {use}: pip install 'nanospr[{extra}]'" if text == NOT_INSTALLED else ""
        found.append(Finding(True, name, text))
    found.append(_device())
    memory = memory_gib()
    if memory is not None:
        found.append(Finding(memory >= 2, "memory", f"{memory:.1f} GiB" + ("" if memory >= 2 else ": 2 GiB or more")))
    free = shutil.disk_usage(folder).free / 2**30
    writable = os.access(folder, os.W_OK)
    text = f"{free:.1f} GiB free in {folder}" + ("" if writable else ", which is not writable: choose another --out")
    found.append(Finding(writable and free >= 1, "disk", text))
    return found


def report_findings(findings: Sequence[Finding]) -> int:
    """Print the findings; the exit status is 1 when something is not fine."""
    for finding in findings:
        print(f"{'ok  ' if finding.fine else 'BAD '}{finding.name:13}{finding.text}")
    return 0 if all(finding.fine for finding in findings) else 1


def memory_gib() -> float | None:
    """Memory of this machine in GiB; None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, OSError, AttributeError):
        return None


def _device() -> Finding:
    threads = f"CPU with {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"
    if not torch.cuda.is_available():
        return Finding(True, "device", f"{threads}; no GPU that PyTorch can use")
    properties = torch.cuda.get_device_properties(0)
    try:  # a driver too old for this PyTorch shows only when something is computed
        works = float(torch.ones(8, device="cuda").sum()) == 8
    except RuntimeError as error:
        works = False
        threads = str(error).splitlines()[0]
    text = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    return Finding(works, "device", text if works else f"{text}: does not compute ({threads}); use --device cpu")
