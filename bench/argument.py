"""Types of the benches' options: what they do not understand is named, exit status 2."""

from __future__ import annotations

import argparse


def count(text: str) -> int:
    """How many, at least one: 2000 or 2e3."""
    return _whole(text, 1)


def counts(text: str) -> list[int]:
    """Several, separated by commas: 1e6,1e7."""
    return [count(one) for one in text.split(",")]


def number(text: str) -> int:
    """A seed, or how many where there may be none."""
    return _whole(text, 0)


def numbers(text: str) -> list[int]:
    """Seeds, separated by commas: 1,2,3."""
    return [number(one) for one in text.split(",")]


def names(text: str) -> list[str]:
    return text.split(",")


def gigabytes(text: str) -> int:
    """Bytes, of gigabytes: 16 or 0.5."""
    try:
        size = float(text) * 1e9
    except ValueError:
        size = 0.0
    if not 0 < size < 1e18:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of gigabytes above 0")
    return int(size)


def _whole(text: str, least: int) -> int:
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not least <= found < 2**63 or found != int(found):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} on, as 2000 or 2e3")
    return int(found)
