"""The command: ``python -m pipeline.run``.

Only this file parses arguments and talks to the terminal; ``pipeline/invocation.py`` runs the stages. Nothing heavy
is imported before the options are known to be right, so ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from pipeline import __version__
from pipeline.errors import ConfigError, EventgrainError, did_you_mean

COMMANDS = {
    "all": "every stage in order (the default)",
    "plan": "say what a run would read and cost; reads no data, writes nothing",
    "describe": "every feature: name, definition, dtype, unit, window: --json, --client, --model",
    "simulate": "write a simulated event log: --events, --out, --clients, --days, --seed, --ids, --workers",
    "ingest": "raw files into the sorted store",
    "rollup": "ingest, and counts and rates per campaign, provider and time",
    "tune": "ingest, and a search for each client's best settings of the model",
    "train": "ingest, and a model for each client, measured on a hold-out in time",
    "decide": "everything up to the send/hold list",
    "report": "everything up to report.html",
    "models": "list the model versions of each client, or put one in use: --use, --client",
    "verify": "check digests, sizes and row counts of the whole store",
    "compact": "merge small files of the store, as every run does for closed months",
    "clean": "remove orphans and files of old snapshots: --dry-run, --older-than",
    "forget": "erase people's events, decisions and rejected rows: --subscriber, --subscribers, --client",
}
UPKEEP = ("verify", "compact", "clean", "forget")  # see pipeline/upkeep.py and pipeline/forget.py
# The options that not every command takes.
OPTIONS = {
    "simulate": ("events", "out", "clients", "days", "seed", "ids", "workers"),
    "clean": ("dry_run", "older_than"),
    "forget": ("subscriber", "subscribers", "client"),
    "describe": ("json", "client", "model"),
    "models": ("client", "use"),
}

DESCRIPTION = """\
Turn a raw event log into decisions: whom not to send the next message, and in
which order to send the rest. Without --config a demo log is simulated and used."""

EPILOG = """\
commands:
{commands}

examples:
  python -m pipeline.run                                    the demo, end to end, into runs/demo
  python -m pipeline.run --config acme.yaml                 your own log
  python -m pipeline.run plan --config acme.yaml            what would that read and cost?
  python -m pipeline.run train --config acme.yaml model.epochs=5 windows=[7d,28d]
  python -m pipeline.run tune --config acme.yaml --cluster local tune.trials=40
  python -m pipeline.run simulate --events 20e6 --out /data/log

Any option of the configuration can be given as key=value; README lists them all.
Finished stages are not redone: an interrupted run goes on where it stopped.
Exit status: 0 done, 2 something you can mend (one message says what), 3 done, but a
new model was refused and gate.strict is true, 130 interrupted (Ctrl-C; a second one
does not wait for the work in hand)."""

KEPT = "finished stages are kept; the same command goes on from there"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
BARRED = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EIO, errno.EMFILE, errno.ENAMETOOLONG)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; `python -m pipeline.run --help` lists what there is")


def _count(text: str) -> int:
    try:
        value = float(text.replace("_", "").replace(",", ""))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, as in 2000000 or 2e6") from None
    if not 0 < value < 1e15 or value != int(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(value)


def build_parser() -> argparse.ArgumentParser:
    commands = "\n".join(f"  {name:<10}{text}" for name, text in COMMANDS.items())
    parser = _Parser(
        prog="python -m pipeline.run",
        description=DESCRIPTION,
        epilog=EPILOG.format(commands=commands),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("words", nargs="*", metavar="[COMMAND] [key=value ...]", help="see below")
    parser.add_argument("-c", "--config", metavar="FILE", help="YAML configuration of your log and questions")
    parser.add_argument("--as-of", metavar="DATE", help="decide as if it were this instant (UTC)")
    parser.add_argument("--backend", metavar="NAME", help="auto, cpu (pandas) or gpu (cuDF); default auto")
    parser.add_argument("--cluster", metavar="WHERE", help="auto, threads, local, gpu, slurm or tcp://host:port")
    parser.add_argument("--version", action="version", version=f"eventgrain {__version__}")
    simulate = parser.add_argument_group("simulate")
    simulate.add_argument("--events", type=_count, metavar="N", help="about how many events (2e6)")
    simulate.add_argument("--out", metavar="DIR", help="folder to write events/ and truth/ into")
    simulate.add_argument("--clients", type=_count, metavar="N", help="number of clients (2)")
    simulate.add_argument("--days", type=_count, metavar="N", help="days of history (180)")
    simulate.add_argument("--seed", type=int, metavar="N", help="same seed, same log (1)")
    simulate.add_argument("--ids", choices=["string", "integer"], help="form of subscriber and campaign ids")
    simulate.add_argument("--workers", type=_count, metavar="N", help="threads to simulate with")
    describe = parser.add_argument_group("describe")
    describe.add_argument("--json", action="store_true", default=None, help="the specification as JSON")
    describe.add_argument("--model", metavar="VERSION", help="of a trained version, or of the `current` ones")
    clean = parser.add_argument_group("clean")
    clean.add_argument(
        "--dry-run", action="store_true", default=None, help="name what would be removed; remove nothing"
    )
    clean.add_argument(
        "--older-than", metavar="AGE", help="leave orphans younger than this, as 12h (24h on object stores, else none)"
    )
    forget = parser.add_argument_group("forget")
    forget.add_argument("--subscriber", action="append", metavar="ID", help="whom to forget; may be given again")
    forget.add_argument("--subscribers", metavar="FILE", help="or a file of ids, one a line")
    models = parser.add_argument_group("models")
    models.add_argument("--use", metavar="VERSION", help="put this version of --client in use")
    both = parser.add_argument_group("describe, forget, models")
    both.add_argument("--client", metavar="NAME", help="of this client only (every client's)")
    return parser


def _split_words(words: list[str]) -> tuple[str, list[str]]:
    command = "all"
    if words and "=" not in words[0]:
        command, *words = words
    if command not in COMMANDS:
        raise ConfigError(f"there is no command {command!r}: {did_you_mean(command, COMMANDS)}")
    for word in words:
        if "=" not in word:
            raise ConfigError(f"{word!r} is neither a command (it would come first) nor a key=value override")
    return command, words


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    with _stoppable() as stopped:
        try:
            return _main(argv)
        except (Exception, KeyboardInterrupt):
            # Libraries may turn the interrupt into an error of their own, an import for one.
            if not stopped:
                raise
            print(f"\ninterrupted: {KEPT}", file=sys.stderr)
            return 128 + stopped[0]


@contextlib.contextmanager
def _stoppable() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM as KeyboardInterrupt; yields the signals received. The second one ends the process at once."""
    received: list[int] = []

    def stop(number: int, _: Any) -> None:
        if received:
            os._exit(128 + number)
        received.append(number)
        raise KeyboardInterrupt

    try:
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: whoever runs us there decides
        before = {}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _main(argv: Sequence[str] | None) -> int:
    try:
        options = build_parser().parse_intermixed_args(argv)
        command, overrides = _split_words(options.words)
        return _dispatch(command, overrides, options)
    except EventgrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:
        # The reader of our output went away (`| head`); nothing is left to say, and Python must not say it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        # Any write of any stage may be the one that no longer fits.
        if error.errno in FULL:
            said = f"{os.strerror(error.errno).lower()}: make room where runs and store are, or set them elsewhere"
        elif error.errno in BARRED or (
            type(error) is OSError and error.errno is None
        ):  # the latter as of the Delta log
            said = " ".join(re.sub(r"\x1b\[[0-9;]*m|↳", " ", str(error)).split()) + ": mend that and run again"
        else:
            raise
        print(f"error: {said}; {KEPT}", file=sys.stderr)
        return EventgrainError.exit_status
    except MemoryError:
        hint = "use more memory, more partitions, a smaller batch_rows, or model.downsample below 1"
        print(f"error: out of memory: {hint}; {KEPT}", file=sys.stderr)
        return EventgrainError.exit_status


def _dispatch(command: str, overrides: list[str], options: argparse.Namespace) -> int:
    for owner, names in OPTIONS.items():
        others = OPTIONS.get(command, ())
        given = [f"--{k.replace('_', '-')}" for k in names if k not in others and getattr(options, k) is not None]
        if command != owner and given:
            hint = "; elsewhere write for example simulate.events=2000000" if owner == "simulate" else ""
            raise ConfigError(f"the command {owner} alone takes {', '.join(given)}{hint}")
    for key in ("as_of", "backend", "cluster"):
        value = getattr(options, key)
        if value is not None:
            overrides = [*overrides, f"{key}={value}"]

    from pipeline import config as configuration
    from pipeline import invocation, stages

    if command == "simulate":
        if options.out is None:
            raise ConfigError("simulate needs --out DIR, the folder to write the log into")
        keys = ("events", "clients", "days", "seed", "ids")
        overrides += [f"simulate.{k}={getattr(options, k)}" for k in keys if getattr(options, k) is not None]
        config = configuration.load(options.config, overrides)
        stages.simulate_log(config, options.out, options.workers)
        return 0
    config = configuration.load(options.config, overrides)
    if command == "plan":
        from pipeline.plan import make_plan

        print("\n".join(make_plan(config).lines))
        return 0
    if command == "describe":
        from pipeline.describe import describe

        describe(config, bool(options.json), options.client, options.model)
        return 0
    if command == "models":
        from pipeline.versions import list_versions, put_in_use

        if options.use is None:
            list_versions(config, options.client)
        else:
            put_in_use(config, options.use, options.client)
        return 0
    if command in UPKEEP:
        from pipeline import forget, upkeep

        work = forget.forget if command == "forget" else getattr(upkeep, command)
        work(config, **{name: getattr(options, name) for name in OPTIONS.get(command, ())})
        return 0
    return invocation.run(config, until="report" if command == "all" else command)


if __name__ == "__main__":
    sys.exit(main())
