"""Packages that are not needed by all: what to say when one is asked for and not there."""

from __future__ import annotations

import importlib.util

from common.data import InputError


def require_abtem(asked_by: str) -> None:
    """InputError unless abTEM (GPL-3, so never needed by the package itself) is installed."""
    if importlib.util.find_spec("abtem") is None:
        raise InputError(f"{asked_by} needs abTEM, which is not installed: pip install 'nanospr[multislice]'")
