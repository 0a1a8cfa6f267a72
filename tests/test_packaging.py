"""What is installed, and what the first page promises about it: pyproject, lock, conda, Makefile and README agree."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from pydantic import BaseModel

import pipeline
from pipeline.config import Config

ROOT = Path(__file__).parent.parent
OF_MAKE = ("ARGS", "MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS")  # what `make test ARGS=...` hands down
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = tomllib.loads((ROOT / "uv.lock").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
README = (ROOT / "README.md").read_text()

CONDA_NAMES = {
    "cudf-cu12": "cudf",
    "dask-cudf-cu12": "dask-cudf",
    "cupy-cuda12x": "cupy",
    "tzdata": "python-tzdata",
    "xxhash": "python-xxhash",
}


def requirements(lines: list[str]) -> dict[str, SpecifierSet]:
    parsed = [Requirement(line) for line in lines]
    return {requirement.name: requirement.specifier for requirement in parsed}


def locked(name: str) -> set[str]:
    return {package["version"] for package in LOCK["package"] if package["name"] == name}


def test_base_needs_no_tensorflow() -> None:
    names = set(requirements(PROJECT["project"]["dependencies"]))
    assert not names & {"tensorflow", "tensorflow-cpu", "keras"}


def test_uv_default_is_the_cpu_extra() -> None:
    assert PROJECT["dependency-groups"]["cpu"] == EXTRAS["cpu"]
    assert "cpu" in PROJECT["tool"]["uv"]["default-groups"]


@pytest.mark.parametrize("other", [{"extra": "cpu"}, {"group": "cpu"}], ids=str)
def test_cpu_and_gpu_exclude_each_other(other: dict[str, str]) -> None:
    assert [other, {"extra": "gpu"}] in PROJECT["tool"]["uv"]["conflicts"]


def test_both_sets_are_locked_on_one_pandas_numpy_and_dask() -> None:
    for shared in ("pandas", "numpy", "dask", "distributed", "pyarrow", "numba", "keras", "deltalake"):
        assert len(locked(shared)) == 1, f"{shared}: {locked(shared)}"
    for one_sided in ("tensorflow", "tensorflow-cpu", "cudf-cu12", "dask-cuda"):
        assert len(locked(one_sided)) == 1


def test_this_environment_has_one_tensorflow() -> None:
    installed = {d.metadata["Name"].lower() for d in importlib.metadata.distributions()}
    assert not {"tensorflow", "tensorflow-cpu"} <= installed


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("pandas", "3.0.6"),
        ("numpy", "2.4.6"),
        ("dask", "2026.7.1"),
        ("distributed", "2026.7.1"),
        ("numba", "0.64.0"),
        ("deltalake", "1.6.6"),
        ("pyarrow", "26.0.1"),
        ("pydantic", "2.14.3"),
        ("xxhash", "4.1.0"),
        ("tzdata", "2026.6"),
        ("dask-cuda", "26.10.0"),
        ("tensorflow", "2.21.0"),
        ("keras", "3.15.1"),
    ],
)
def test_what_gpu_machines_run_is_in_range(name: str, version: str) -> None:
    wanted = requirements([*PROJECT["project"]["dependencies"], *EXTRAS["gpu"]])
    assert version in wanted[name]


def test_conda_environment_has_the_same_pins() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    plain = [line for line in environment if isinstance(line, str)]
    by_pip = next(line["pip"] for line in environment if isinstance(line, dict))
    conda = requirements([*plain, *by_pip])
    assert conda.pop("python") == SpecifierSet(PROJECT["project"]["requires-python"])
    conda.pop("pip")
    conda.pop("cuda-version")
    ours = requirements([*PROJECT["project"]["dependencies"], *EXTRAS["gpu"]])
    assert conda == {CONDA_NAMES.get(name, name): pins for name, pins in ours.items()}


def test_one_version() -> None:
    assert PROJECT["project"]["version"] == pipeline.__version__


def test_make_help_lists_every_command() -> None:
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("setup", "run", "test", "check", "bench", "gpu-test"):
        assert re.search(rf"^  make {target} +\S", shown, re.MULTILINE), target


def test_readme_begins_with_the_two_commands() -> None:
    commands = re.findall(r"^make ([a-z-]+)", README, re.MULTILINE)
    assert commands[:2] == ["run", "test"]


def test_make_commands_in_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z][a-z-]*)", README, re.MULTILINE))
    assert named <= targets


def test_ci_runs_the_readme_commands() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert {"make check", "make test"} <= set(script.read_text().splitlines())


def test_the_bench_measures_beside_every_peer_by_default() -> None:
    def shown(*arguments: str) -> str:
        command = ["make", "--dry-run", "--always-make", "bench", *arguments]
        alone = {name: value for name, value in os.environ.items() if name not in OF_MAKE}
        done = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True, check=True)
        lines = done.stdout.splitlines()
        return next(line for line in lines if "-m bench.run" in line).partition("-m bench.run ")[2]

    assert shown() == "all --events 20e6 --peers polars,duckdb,spark"
    assert shown("ARGS=rollup --peers polars,duckdb") == "rollup --peers polars,duckdb"


def options(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted name of every option, ``<...>`` standing for a name of the user's choice."""
    for name, field in section.model_fields.items():
        below = [kind for kind in _classes(field.annotation) if issubclass(kind, BaseModel)]
        if below:
            user_named = {"clients": "<client>.", "outcomes": "<name>."}.get(name, "") if not prefix else ""
            yield from options(below[0], f"{prefix}{name}.{user_named}")
        else:
            yield prefix + name


def _classes(annotation: Any) -> list[type]:
    parts = getattr(annotation, "__args__", ())
    return [annotation] if isinstance(annotation, type) and not parts else [c for part in parts for c in _classes(part)]


def readme_options() -> set[str]:
    """The first column of the tables; a leading dot repeats what precedes the last dot of the name before it."""
    found: set[str] = set()
    for cell in re.findall(r"^\| (`[^|]*?) \|", README, re.MULTILINE):
        before = ""
        for name in re.findall(r"`([^`]+)`", cell):
            before = before.rpartition(".")[0] + name if name.startswith(".") else name
            found.add(before)
    return found


def test_readme_explains_every_option() -> None:
    real = set(options(Config))
    assert len(real) > 60
    described = readme_options()
    assert real - described == set()
    sections = {name.partition(".")[0] for name in real}
    assert {n for n in described if "." in n and n.partition(".")[0] in sections and "=" not in n} - real == set()


PYTHON_IS_OLD = "#!/bin/sh\necho 'Python 3.8.18'\n[ \"$1\" = --version ]\n"


def find_python(path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", str(ROOT / ".ci" / "find-python")],
        env={"PATH": str(path), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_old_python_is_passed_over(tmp_path: Path) -> None:
    old, new = tmp_path / "python3", tmp_path / "python3.12"
    old.write_text(PYTHON_IS_OLD)
    old.chmod(0o755)
    alone = find_python(tmp_path)
    assert alone.returncode == 1
    assert "3.11, 3.12 or 3.13" in alone.stderr
    assert "python3: Python 3.8.18" in alone.stderr
    new.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    new.chmod(0o755)
    found = find_python(tmp_path)
    assert found.returncode == 0
    assert Path(found.stdout.strip()).is_file()


def test_no_python_is_a_clear_message(tmp_path: Path) -> None:
    assert "Found: none" in find_python(tmp_path).stderr
    assert "Found: none at /nowhere/python" in find_python(tmp_path, PYTHON="/nowhere/python").stderr


def test_importing_cluster_imports_nothing_heavy() -> None:
    heavy = ("dask", "distributed", "pandas", "pyarrow", "tensorflow")
    code = f"import sys, cluster; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
