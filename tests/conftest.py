"""The one fixture that every test touching data runs over: both backends, the GPU one skipped where there is none."""

from __future__ import annotations

import pytest

from pipeline.backend import Backend, choose, gpu_problem

GPU_PROBLEM = gpu_problem()
# Files that take a minute or more, by name; they are begun first.
LONG = (
    "test_demo",
    "test_tuning",
    "test_launch",
    "test_kills",
    "test_devices",
    "test_data",
    "test_pooled",
    "test_damage",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture(
    params=[
        "pandas",
        pytest.param(
            "cudf",
            marks=[pytest.mark.gpu, pytest.mark.skipif(GPU_PROBLEM is not None, reason=f"no GPU: {GPU_PROBLEM}")],
        ),
    ]
)
def backend(request: pytest.FixtureRequest) -> Backend:
    return choose("cpu" if request.param == "pandas" else "gpu")
