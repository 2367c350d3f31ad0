"""How a command runs: one line and status 2 for bad input, a traceback only for a bug, and the device."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

import torch
from threadpoolctl import threadpool_limits

from common.cli.settings import nearest
from common.cli.workers import free_cores
from common.data import InputError
from common.parallel import use_threads

OK, BUG, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
_MOST_THREADS = 8  # by default: more gain little and take memory


class Parser(argparse.ArgumentParser):
    """An `argparse` parser whose errors are one line, and that takes no abbreviations."""

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **{"allow_abbrev": False} | options)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")

    def parse_all(self, arguments: list[str] | None) -> argparse.Namespace:
        """Parse; an unknown option is refused with the nearest known one.

        Raises
        ------
        InputError : the options cannot be understood.
        """
        given, unknown = self.parse_known_args(arguments)
        if unknown:
            parser: Parser = getattr(given, "parser", self)
            known = [option for action in parser._actions for option in action.option_strings]
            first = unknown[0].partition("=")[0]
            if first.startswith("-"):
                raise InputError(f"{first} is not an option of {parser.prog}; {nearest(first, known)}")
            raise InputError(f"{unknown[0]!r} was not expected here; see {parser.prog} --help")
        return given


def run_program(name: str, command: Callable[[], int | None], *, to_resume: Callable[[], str] = lambda: "") -> int:
    """Run a command and return its exit status.

    Parameters
    ----------
    name : of the program, in front of its messages.
    command : returns the exit status, None for 0.
    to_resume : what to say when the user stops it.

    Returns
    -------
    0, 2 for `InputError` (one line), 130 for Ctrl-C (one line that says how to resume), 1 for a bug (traceback).
    """
    try:
        return command() or OK
    except InputError as error:
        _say(f"{name}: {' '.join(str(error).split())}")
        return BAD_INPUT
    except KeyboardInterrupt:
        _say(f"{name}: interrupted. {to_resume()}".rstrip())
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BUG
    except (MemoryError, torch.OutOfMemoryError) as error:
        first = str(error).splitlines()[0] if str(error) else "no more could be had"
        _say(f"{name}: out of memory ({first}); use a smaller batch size or fewer images. {to_resume()}".rstrip())
        return BUG
    except Exception:
        traceback.print_exc()
        _say(f"{name}: this is a bug, please report it with the lines above. {to_resume()}".rstrip())
        return BUG


def _say(line: str) -> None:
    if int(os.environ.get("RANK", "0")) == 0:
        print(line, file=sys.stderr)


def choose_device(name: str) -> torch.device:
    """The device to compute on.

    Parameters
    ----------
    name : "cpu", "cuda", or "auto" for a GPU when there is one.

    Raises
    ------
    InputError : an unknown name, or "cuda" where there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise InputError(f"--device is {name!r}, expected auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device is cuda, but PyTorch sees no GPU; use --device cpu or install PyTorch for CUDA")
    return torch.device(name)


def add_machine_arguments(parser: Parser) -> argparse._ArgumentGroup:
    """Where it is computed; none of these changes the result. Returns the group of options, for more of them."""
    group = parser.add_argument_group("machine")
    devices = "where to compute (default: auto, a GPU where there is one)"
    group.add_argument("--device", metavar="auto|cpu|cuda", default="auto", help=devices)
    add_threads_argument(group)
    return group


def add_threads_argument(parser: argparse._ActionsContainer) -> None:
    text = "CPU threads of a process (default: 0, as many as OMP_NUM_THREADS says or as there are cores, up to 8)"
    parser.add_argument("--threads", metavar="N", type=int, default=0, help=text)


def set_threads(n: int) -> int:
    """Let this process compute with so many CPU threads, which does not change what it computes.

    Parameters
    ----------
    n : threads; 0: as many as OMP_NUM_THREADS says (torchrun sets it) or as there are free cores, up to 8.

    Returns
    -------
    How many they are.

    Raises
    ------
    InputError : a negative number.
    """
    if n < 0:
        raise InputError(f"--threads is {n}, expected 0 (automatic) or more")
    stated = os.environ.get("OMP_NUM_THREADS", "")
    count = n or (int(stated) if stated.isdecimal() and int(stated) > 0 else min(free_cores(), _MOST_THREADS))
    threadpool_limits(1)  # of the linear algebra of numpy and scipy, whose rounding would depend on it
    use_threads(count)
    return count
