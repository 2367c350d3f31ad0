"""Speed and accuracy, as tables in Markdown; ``--readme`` puts them into the README.

Every case is simulated anew, so the numbers can be had on any machine: ``make bench``.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import sys
from pathlib import Path
from types import ModuleType

import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(str(path))
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def tilt_tables(folder: Path, seeds: list[int]) -> list[str]:
    """Tilt series to atoms, and every method of reconstruction on one series."""
    whole, methods = (load(HERE / "accuracy" / f"{name}.py") for name in ("bench_tilts", "tilt_methods"))
    rows = []
    for k, name in enumerate(whole.CASES, start=1):
        for seed in seeds:
            rows.append(whole.run_case(folder / f"tilts-{k}", name, seed))
            print("| " + " | ".join(rows[-1]) + " |", flush=True)
    return [table(whole.COLUMNS, rows), table(methods.COLUMNS, methods.measure())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["speed", "accuracy", "tilts"], help="one of the parts")
    parser.add_argument("--cases", nargs="+", type=int, metavar="K", help="these accuracy cases, from 1 (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1], help="one run of each case for each seed")
    parser.add_argument("--n-images", type=int, default=939, help="images of each case")
    parser.add_argument("--folder", type=Path, default=ROOT / ".bench", help="where data and runs go")
    parser.add_argument("--readme", action="store_true", help="put the tables into README.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    parts = [f"{platform.machine()}, one CPU thread, PyTorch {torch.__version__}."]
    if given.only in (None, "speed"):
        kernels = load(HERE / "speed" / "bench_kernels.py")
        parts.append(table(("80 x 80 pixels, 68 atoms", "CPU time"), kernels.measure()))
        print(parts[-1], flush=True)
    if given.only in (None, "accuracy"):
        recovery = load(HERE / "accuracy" / "bench_recovery.py")
        rows = []
        for k, (name, case) in enumerate(recovery.CASES.items(), start=1):
            for seed in given.seeds if given.cases is None or k in given.cases else ():
                outcome = recovery.run_case(given.folder / f"case-{k}", case, seed, given.n_images)
                rows.append(recovery.row(name, seed, outcome))
                print("| " + " | ".join(rows[-1]) + " |", flush=True)
        parts.append(table(recovery.COLUMNS, rows))
    if given.only in (None, "tilts"):
        parts += tilt_tables(given.folder, given.seeds)
    text = "\n\n".join(parts)
    print(f"\n{text}")
    if given.readme:
        readme = (ROOT / "README.md").read_text(encoding="utf-8")
        before, rest = readme.split(BEGIN)
        after = rest.split(END)[1]
        (ROOT / "README.md").write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
