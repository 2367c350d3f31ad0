"""The answer does not depend on the number of processes and threads, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from common.parallel import map_over_shards, process_count, process_rank, shards, sum_over_shards, use_threads

# Values of very different size, so that another order of summation shows in the last bits.
PROGRAM = """
import sys, torch
from dataclasses import dataclass
from safetensors.torch import save_file
from common.io.run_folder import RunFolder
from common.iteration import State, run
from common.parallel import map_over_shards, process_count, process_rank, processes, sum_over_shards

torch.set_num_threads(1)
result = {}
with processes() as device:
    for n in (1, 3, 17, 50):
        images = torch.exp(8 * torch.randn(n, 6, 6, generator=torch.Generator().manual_seed(n)))
        total, spectrum, count = sum_over_shards(
            lambda i: (images[i].sum(0), torch.fft.fft2(images[i]).sum(0), torch.tensor(len(i))), n
        )
        rows, kept, waves = map_over_shards(
            lambda i: (images[i].mean((1, 2)), images[i, 0, 0] > 1, torch.fft.fft(images[i])), n
        )
        values = dict(total=total, spectrum=torch.view_as_real(spectrum), count=count, rows=rows, kept=kept,
                      waves=torch.view_as_real(waves))
        result |= {f"{key}/{n}": value.contiguous() for key, value in values.items()}
    result["processes"] = torch.tensor(process_count())
    save_file(result, sys.argv[1] + f".{process_rank()}")

    @dataclass(frozen=True)
    class Mean(State):
        mean: torch.Tensor

    def step(state):
        (mean,) = sum_over_shards(lambda i: ((images[i] - state.mean).mean((1, 2)).sum(0),), len(images))
        return Mean(state.iteration + 1, state.iteration == 4, mean)

    for _ in range(2):  # the second time it has ended
        with RunFolder.open(sys.argv[1] + ".run", inputs={}, settings={}, command="mean") as folder:
            if not folder.is_complete:
                last = run("mean", Mean(0, False, torch.zeros(())), step, folder.observers(interval=0))
                folder.finish(metrics={"mean": last.mean})
"""


def run(tmp_path: Path, count: int) -> list[dict[str, torch.Tensor]]:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    out = tmp_path / f"of{count}"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [*(launch if count > 1 else [sys.executable]), str(program), str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [load_file(f"{out}.{rank}") for rank in range(count)]


def test_two_processes_give_every_bit_of_what_one_gives(tmp_path: Path) -> None:
    (alone,) = run(tmp_path, 1)
    assert int(alone.pop("processes")) == 1
    for result in run(tmp_path, 2):
        assert int(result.pop("processes")) == 2
        assert result.keys() == alone.keys()
        for name, value in alone.items():
            assert value.dtype == result[name].dtype
            assert value.numpy().tobytes() == result[name].numpy().tobytes(), name
    for name in ("metrics.csv", "run.json"):
        assert (tmp_path / "of1.run" / name).read_bytes() == (tmp_path / "of2.run" / name).read_bytes()


@pytest.mark.parametrize("n", [1, 15, 16, 17, 939])
def test_shards_cover_every_image_once_in_order(n: int) -> None:
    parts = shards(n)
    assert torch.equal(torch.cat(parts), torch.arange(n))
    lengths = [len(part) for part in parts]
    assert len(parts) == min(n, 16)
    assert max(lengths) - min(lengths) <= 1
    assert sorted(lengths, reverse=True) == lengths


def test_one_process_needs_no_setting_up() -> None:
    images = torch.randn(40, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (total,) = sum_over_shards(lambda i: (images[i].sum(0),), 40)
    (squares,) = map_over_shards(lambda i: (images[i] ** 2,), 40)
    torch.testing.assert_close(total, images.sum(0))
    assert torch.equal(squares, images**2)
    assert (process_rank(), process_count()) == (0, 1)


def test_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="0 images"):
        sum_over_shards(lambda i: (i,), 0)


@pytest.fixture
def three_threads() -> Iterator[None]:
    use_threads(3)
    yield
    use_threads(1)


def test_threads_give_every_bit_of_what_one_gives(three_threads: None) -> None:
    images = torch.exp(8 * torch.randn(50, 6, 6, generator=torch.Generator().manual_seed(1)))
    workers = set()

    def spectrum(rows: torch.Tensor) -> tuple[torch.Tensor]:
        workers.add(threading.current_thread().name)
        return (torch.fft.fft2(images[rows]),)

    several = sum_over_shards(lambda i: (spectrum(i)[0].sum(0),), 50), map_over_shards(spectrum, 50)
    assert len(workers) == 3
    assert threading.current_thread().name not in workers
    use_threads(1)
    alone = sum_over_shards(lambda i: (spectrum(i)[0].sum(0),), 50), map_over_shards(spectrum, 50)
    for (a,), (b,) in zip(several, alone, strict=True):
        assert torch.equal(a, b)


def test_an_error_in_a_thread_is_raised_and_gradients_are_as_outside(three_threads: None) -> None:
    def bad(rows: torch.Tensor) -> tuple[torch.Tensor]:
        raise ValueError(f"image {int(rows[0])}")

    with pytest.raises(ValueError, match="image 0"):
        sum_over_shards(bad, 20)
    with torch.no_grad():
        (recording,) = map_over_shards(lambda i: (torch.full((len(i),), torch.is_grad_enabled()),), 20)
    assert not bool(recording.any())
