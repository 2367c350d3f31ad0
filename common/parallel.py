"""Many processes and threads, one answer: images in a fixed number of virtual shards, summed in a fixed order.

Start one process with ``python`` or N with ``torchrun --nproc-per-node N``: the shards are the same, a process takes
every N-th of them, and the sums are added in the order of the shards. So the answer does not depend on N, bit for bit.
The threads of a process (`use_threads`) take a shard each: most operations are too short to be shared by threads, and
one that is shared may round differently with another number of them.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

N_SHARDS = 16
_threads = 1  # of this process; each works on a part


def use_threads(count: int) -> None:
    """Work on so many parts at a time from now on, each operation on one thread; the answer does not depend on it."""
    global _threads
    torch.set_num_threads(1)
    _threads = count


def process_rank() -> int:
    """Number of this process, from 0; 0 when there is only one."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def process_count() -> int:
    """How many processes share the work."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@contextmanager
def processes(device: torch.device | str = "cpu") -> Iterator[torch.device]:
    """Join the processes that torchrun started, for as long as the block lasts; nothing happens without torchrun.

    Parameters
    ----------
    device : "cpu" (gloo) or "cuda" (nccl; each process takes the GPU of its local rank).

    Yields
    ------
    The device of this process.
    """
    device = torch.device(device)
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % max(torch.cuda.device_count(), 1))
    if count == 1 or dist.is_initialized():
        yield device
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def shards(n_images: int, n_shards: int = N_SHARDS) -> tuple[Tensor, ...]:
    """The virtual shards: consecutive runs of image indices, in order, as even as can be and none empty.

    Parameters
    ----------
    n_images : >= 1.
    n_shards : at most so many; fewer when there are fewer images.

    Raises
    ------
    ValueError : there is no image, or no shard is wanted.
    """
    if n_images < 1 or n_shards < 1:
        raise ValueError(f"{n_images} images in {n_shards} shards, expected at least one of each")
    return torch.arange(n_images).tensor_split(min(n_shards, n_images))


def sum_over_shards(
    function: Callable[[Tensor], Sequence[Tensor]], n_images: int, *, n_shards: int = N_SHARDS
) -> tuple[Tensor, ...]:
    """Sum what a function returns for each shard of the images, over all processes.

    Parameters
    ----------
    function : takes the indices of a shard's images, (k,) int64 on the CPU; returns tensors whose shapes and dtypes are
        the same for every shard (partial sums over these images). It must not itself talk to other processes, and
        several threads may be in it at once.
    n_images : >= 1.

    Returns
    -------
    The sums, on every process the same, bit for bit the same for any number of processes.

    Notes
    -----
    Memory: one shard per thread at a time. The sum runs strictly in the order of the shards.
    """
    return sum_over(function, shards(n_images, n_shards))


def sum_over(function: Callable[[Tensor], Sequence[Tensor]], parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """`sum_over_shards` over ``parts`` of one's own: index tensors, at least one."""
    totals: tuple[Tensor, ...] | None = None
    for gathered in _rounds(function, parts, same_shape=True):
        for values in gathered:
            totals = values if totals is None else tuple(t + v for t, v in zip(totals, values, strict=True))
    if totals is None:
        raise ValueError("there is nothing to sum")
    return totals


def map_over_shards(
    function: Callable[[Tensor], Sequence[Tensor]], n_images: int, *, n_shards: int = N_SHARDS
) -> tuple[Tensor, ...]:
    """Collect what a function returns for each image, over all processes, in the order of the images.

    Parameters
    ----------
    function : takes the indices of a shard's images, (k,) int64 on the CPU; returns tensors (k, ...), a row per image.
    n_images : >= 1.

    Returns
    -------
    The tensors (n_images, ...), on every process the same.
    """
    return map_over(function, shards(n_images, n_shards))


def map_over(
    function: Callable[[Tensor], Sequence[Tensor]], parts: Sequence[Tensor], *, dim: int = 0
) -> tuple[Tensor, ...]:
    """`map_over_shards` over ``parts`` of one's own: index tensors, at least one, none longer than one before it.

    dim : of the function's tensors that runs along the part.
    """
    pieces = [values for gathered in _rounds(function, parts, same_shape=False, dim=dim) for values in gathered]
    return tuple(torch.cat(column, dim) for column in zip(*pieces, strict=True))


def own_parts(parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Those of the ``parts`` that this process is asked for in `sum_over` and `map_over`."""
    rank, count = process_rank(), process_count()
    return tuple(_own(parts[first : first + count], rank) for first in range(0, len(parts), count))


def _own(these: Sequence[Tensor], rank: int) -> Tensor:
    # A process without a part of its own in this round computes a short one again, for its shapes only.
    return these[min(rank, len(these) - 1)]


def _rounds(
    function: Callable[[Tensor], Sequence[Tensor]], parts: Sequence[Tensor], *, same_shape: bool, dim: int = 0
) -> Iterator[list[tuple[Tensor, ...]]]:
    """Results of the shards in order, as many at a time as there are processes."""
    count = process_count()
    firsts = range(0, len(parts), count)
    for first, own in zip(firsts, ahead(lambda part: tuple(function(part)), own_parts(parts)), strict=True):
        these = parts[first : first + count]
        if count == 1:
            yield [own]
            continue
        # Longer parts come first, and a part computed again is the shortest of its round: pad to the longest.
        lengths = [len(part) for part in these]
        columns = [_gather(tensor, count, None if same_shape else max(lengths), dim) for tensor in own]
        rows = [tuple(column[i] for column in columns) for i in range(len(these))]
        yield (
            rows
            if same_shape
            else [tuple(t.narrow(dim, 0, n) for t in row) for row, n in zip(rows, lengths, strict=True)]
        )


def ahead(function: Callable[[Tensor], T], parts: Iterable[Tensor]) -> Iterator[T]:
    """The function of each part, in order, computed ahead by the threads there are."""
    threads = _threads
    if threads == 1 or torch.cuda.is_initialized():  # one thread queues a GPU's work as fast as several
        yield from map(function, parts)
        return
    waiting: deque[Future[T]] = deque()
    recording = torch.is_grad_enabled()  # which each thread has a say of its own in

    def compute(part: Tensor) -> T:
        with torch.set_grad_enabled(recording):
            return function(part)

    try:
        for part in parts:
            waiting.append(_lanes(threads).submit(compute, part))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


@lru_cache(maxsize=1)
def _lanes(threads: int) -> ThreadPoolExecutor:
    # said in each thread, or its linear algebra would take all cores
    return ThreadPoolExecutor(threads, "lane", initializer=torch.set_num_threads, initargs=(1,))


def _gather(tensor: Tensor, count: int, length: int | None, dim: int) -> list[Tensor]:
    """This tensor of every process; with a length, padded to so many rows first."""
    values = tensor.detach().resolve_conj()
    if length is not None and values.shape[dim] < length:
        shape = list(values.shape)
        shape[dim] = length - shape[dim]
        values = torch.cat((values, values.new_zeros(shape)), dim)
    kind = values.dtype
    if kind.is_complex:
        values = torch.view_as_real(values)
    elif kind == torch.bool:
        values = values.to(torch.uint8)
    if dist.get_backend() == "nccl":  # which moves nothing that lies on the CPU
        values = values.cuda()
    values = values.contiguous()
    gathered = [torch.empty_like(values) for _ in range(count)]
    dist.all_gather(gathered, values)
    if kind.is_complex:
        return [torch.view_as_complex(part).to(tensor.device) for part in gathered]
    return [part.to(tensor.device, kind) for part in gathered]
