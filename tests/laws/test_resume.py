"""A run killed with SIGKILL at random moments and started again ends like an undisturbed one, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

# A toy run on the real house: two stochastic loops, a stage between them, outputs, the record. One process imports
# everything, then forks for each attempt and kills the fork at a random moment.
PROGRAM = """
import os, random, signal, sys, time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from common.data import Poses, Volume
from common.io import write_volume
from common.io.run_folder import RunFolder
from common.iteration import State, run, run_stage, step_generator

torch.set_num_threads(1)


@dataclass(frozen=True)
class Anneal(State):
    map: Tensor
    score: Tensor
    seed: int


def step(state):
    generator = step_generator(state.seed, state.iteration)
    noise = torch.randn(state.map.shape, generator=generator)
    map = torch.fft.ifftn(torch.fft.fftn(state.map) * 0.9).real + noise / (1 + state.iteration)
    return Anneal(state.iteration + 1, state.iteration == 19, map, map.std(), state.seed)


def start(seed, map):
    return Anneal(0, False, map, torch.zeros(()), seed)


def classify(map):
    time.sleep(0.02)
    return Poses(torch.linalg.qr(map[:8, :3, :3])[0], map[:8, 0, :2])


def whole(out):
    with RunFolder.open(out, inputs={"a": "0"}, settings={"seed": 1}, command="test") as folder:
        if folder.is_complete:
            return
        observers = folder.observers(interval=0)
        first = run("search/start-0", start(1, torch.zeros(24, 24, 24)), step, observers)
        poses = run_stage("classify", lambda: classify(first.map), observers)
        last = run("search/start-1", start(2, first.map + poses.rotations.sum()), step, observers)
        write_volume(folder.file("volume.mrc"), Volume(last.map, 0.35))
        folder.finish(metrics={"score": float(last.score)}, warnings=["toy"])


def attempt(out, seconds):
    # Run in a fork; kill it after so many seconds (None: never). Returns whether it came to its end.
    child = os.fork()
    if child == 0:
        try:
            whole(out)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        sys.exit("a resumed run failed")
    return os.WIFEXITED(status)


out = Path(sys.argv[1])
began = time.monotonic()
attempt(out / "undisturbed", None)
duration = time.monotonic() - began
chance = random.Random(1)
kills = 0
for _ in range(10):  # short attempts, so that the run does not end before it was killed several times
    kills += not attempt(out / "killed", chance.uniform(0, 0.12 * duration))
attempt(out / "killed", None)
print(kills)
"""


def test_killed_and_resumed_equals_undisturbed(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(program), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 3, "too few attempts were killed"
    names = sorted(os.listdir(tmp_path / "undisturbed"))
    assert names == sorted(os.listdir(tmp_path / "killed")) == [".lock", "metrics.csv", "run.json", "volume.mrc"]
    for name in ("metrics.csv", "volume.mrc"):
        assert (tmp_path / "undisturbed" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name
    records = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("undisturbed", "killed")]
    assert records[0] == records[1]
    assert records[0]["status"] == "finished"
