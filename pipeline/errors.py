"""What can go wrong, one class per action its reader must take.

A message says what was found, where, what was expected and what to do. The command line prints it and exits with
``exit_status``; nobody should see a traceback for a fault of the input.
"""

from __future__ import annotations

from collections.abc import Iterable


class EventgrainError(Exception):
    """Base of every error that a user can act on."""

    exit_status = 2


class ConfigError(EventgrainError):
    """Change the configuration or the command line."""


class SourceError(EventgrainError):
    """Mend or remove a source file, or map its columns differently."""


class DataError(EventgrainError):
    """Look at the data: a validation rule failed, or there is too little of it."""


class TooLittleError(DataError):
    """One client has too little history to learn from; others may have enough. Wait for more, or ask for less."""


class StoreError(EventgrainError):
    """The store is damaged, of another format, or cannot be read or written."""


class ModelError(EventgrainError):
    """Too few rows to learn from, or a model version that cannot be used."""


class InstallationError(EventgrainError):
    """Install a missing package, or run where the wanted device is."""


def first_line(error: BaseException) -> str:
    """A library's message without what follows its first line, a stack of native code for one, or its full stop."""
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".") if lines else type(error).__name__


def did_you_mean(name: str, known: Iterable[str], limit: int = 3) -> str:
    """A hint naming the nearest of ``known`` to ``name``, or listing a few; empty when nothing is known."""
    import difflib

    names = [str(k) for k in known]
    near = difflib.get_close_matches(name, names, n=limit, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(repr(n) for n in near) + "?"
    if not names:
        return ""
    shown = ", ".join(repr(n) for n in names[:12])
    return f"known: {shown}" + (f" and {len(names) - 12} more" if len(names) > 12 else "")
