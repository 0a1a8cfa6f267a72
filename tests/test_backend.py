from __future__ import annotations

import sys
import types

import numpy as np
import pyarrow as pa
import pytest
import xxhash

from pipeline import backend as module
from pipeline.backend import Backend, backend_of, choose, gpu_problem
from pipeline.errors import DataError, InstallationError


def test_hash_is_xxh64_of_the_utf8_text(backend: Backend) -> None:
    ids = ["a", "ünïcode", "", "a", "x" * 300]
    frame = backend.from_arrow(pa.table({"id": ids}))
    expected = [np.uint64(xxhash.xxh64_intdigest(i.encode())).astype(np.int64) for i in ids]
    assert backend.to_host(backend.hash_strings(frame["id"])).tolist() == expected


def test_integers_are_hashed_as_decimal_text(backend: Backend) -> None:
    numbers = backend.from_arrow(pa.table({"id": [7, -12, 7]}))
    texts = backend.from_arrow(pa.table({"id": ["7", "-12", "7"]}))
    left, right = backend.hash_strings(numbers["id"]), backend.hash_strings(texts["id"])
    assert backend.to_host(left).tolist() == backend.to_host(right).tolist()


def test_codes_follow_the_vocabulary(backend: Backend) -> None:
    table = pa.table({"kind": pa.array(["open", None, "send", "odd", "open"]).dictionary_encode()})
    frame = backend.from_arrow(table)
    assert backend.to_host(backend.codes(frame["kind"], ["send", "open"])).tolist() == [1, -1, 0, -1, 1]


def test_column_refuses_nulls(backend: Backend) -> None:
    frame = backend.from_arrow(pa.table({"n": pa.array([1, None, 3], pa.int64())}))
    with pytest.raises(DataError, match="'n' holds nulls"):
        backend.column(frame["n"])


def test_times_come_as_integers(backend: Backend) -> None:
    frame = backend.from_arrow(pa.table({"ts": pa.array([0, 5, 1_700_000_000_000_000], pa.timestamp("us"))}))
    assert backend.to_host(backend.column(frame["ts"])).tolist() == [0, 5, 1_700_000_000_000_000]


def test_aligned_allocation(backend: Backend) -> None:
    for shape in [(3, 5), (0, 4), (1000, 33)]:
        array = backend.empty_aligned(shape, np.float32)
        assert array.shape == shape
        assert array.flags.c_contiguous
        address = array.data.ptr if backend.on_gpu else array.ctypes.data
        assert array.size == 0 or address % 64 == 0


def test_backend_follows_the_data(backend: Backend) -> None:
    assert backend_of(backend.xp.zeros(2)).name == backend.name
    assert backend_of(backend.df.DataFrame({"a": [1]})).name == backend.name


def test_device_memory_has_a_maximum_and_a_release_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    """On stand-ins of RMM and CuPy: what is set, and in which order."""
    done: list[object] = []
    mr = types.SimpleNamespace(
        CudaAsyncMemoryResource=lambda release_threshold: ("pool", release_threshold),
        LimitingResourceAdaptor=lambda upstream, allocation_limit: ("limit", upstream, allocation_limit),
        set_current_device_resource=done.append,
    )
    runtime = types.SimpleNamespace(memGetInfo=lambda: (1, 1_000_000))
    cupy = types.SimpleNamespace(cuda=types.SimpleNamespace(runtime=runtime, set_allocator=done.append))
    monkeypatch.setitem(sys.modules, "rmm", types.SimpleNamespace(mr=mr))
    monkeypatch.setitem(sys.modules, "rmm.allocators.cupy", types.SimpleNamespace(rmm_cupy_allocator="rmm's"))
    monkeypatch.setattr(module, "_cupy", lambda: cupy)
    module.claim_device.__wrapped__()
    assert done == [("limit", ("pool", 299_776), 699_904), "rmm's"]


@pytest.mark.gpu
@pytest.mark.skipif(gpu_problem() is not None, reason=f"no GPU: {gpu_problem()}")
def test_device_memory_is_rmm_s() -> None:
    import cupy
    import rmm

    module.claim_device()
    resource = rmm.mr.get_current_device_resource()
    before = resource.get_allocated_bytes()
    held = cupy.zeros(1 << 20, dtype=np.uint8)
    assert resource.get_allocated_bytes() - before >= held.nbytes
    with pytest.raises(MemoryError):
        cupy.empty(resource.get_allocation_limit() + 1, dtype=np.uint8)


@pytest.mark.skipif(gpu_problem() is None, reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(InstallationError, match="backend=gpu was asked for"):
        choose("gpu")
    assert choose("auto").name == "pandas"
    assert choose("auto").reason
