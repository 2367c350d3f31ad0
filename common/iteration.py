"""The one loop: an algorithm is a pure step from state to state; watching and saving it happen outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch


@dataclass(frozen=True)
class State:
    """All that is needed to go on. Subclasses add tensors, numbers, and further dataclasses of these.

    iteration : steps done so far.
    done : nothing more to do.
    """

    iteration: int
    done: bool


S = TypeVar("S", bound=State)


class Observer(Protocol):
    """Sees every state of a run. ``resume`` may return a saved state to start from instead of the first."""

    def resume(self, name: str, first: State) -> State | None: ...

    def observe(self, name: str, state: State) -> None: ...


def iterate(first: S, step: Callable[[S], S]) -> Iterator[S]:
    """Yield ``first`` and every state after it, until one is done."""
    state = first
    yield state
    while not state.done:
        state = step(state)
        yield state


def run(name: str, first: S, step: Callable[[S], S], observers: Sequence[Observer] = ()) -> S:
    """Drain the loop through the observers and return the last state.

    Parameters
    ----------
    name : what is running, for progress and checkpoints, e.g. ``"search/start-3"``; unique within a run.
    first : the state to start from, unless an observer resumes a later one.
    """
    state = first
    for observer in observers:
        saved = observer.resume(name, first)
        if saved is not None and saved.iteration >= state.iteration:
            state = saved  # type: ignore[assignment]
    for current in iterate(state, step):
        state = current
        for observer in observers:
            observer.observe(name, state)
    return state


@dataclass(frozen=True)
class StageState(State):
    """A stage as a loop of one step: first without, then with its result."""

    result: Any = None


T = TypeVar("T")


def run_stage(name: str, function: Callable[[], T], observers: Sequence[Observer] = ()) -> T:
    """The result of ``function()``, seen by the observers as a loop of one step: a saved result is not computed again.

    Parameters
    ----------
    name : what is running; unique within a run.
    function : a pure function; its result is made of what a state may hold.
    """
    first = StageState(iteration=0, done=False)
    return run(name, first, lambda _: StageState(iteration=1, done=True, result=function()), observers).result


@dataclass(frozen=True)
class Under:
    """Observers that see every loop under a name of its own, so that a stage can run for several classes."""

    prefix: str
    observer: Observer

    def resume(self, name: str, first: State) -> State | None:
        return self.observer.resume(f"{self.prefix}/{name}", first)

    def observe(self, name: str, state: State) -> None:
        self.observer.observe(f"{self.prefix}/{name}", state)


def under(prefix: str, observers: Sequence[Observer]) -> tuple[Observer, ...]:
    return tuple(Under(prefix, observer) for observer in observers)


def step_generator(seed: int, iteration: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The random numbers of one step: a function of ``(seed, iteration)`` alone, so a resumed run draws the same."""
    mixed = (seed * 0x9E3779B97F4A7C15 + iteration * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & (2**63 - 1)
    return torch.Generator(device=device).manual_seed(mixed)
