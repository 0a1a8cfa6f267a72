"""pandas + NumPy, or cuDF + CuPy: the one place that knows which.

The only file that imports cudf or cupy. A :class:`Backend` is chosen once per run with a printed reason
(:func:`choose`) and follows the data after that (:func:`backend_of`). Everything here exists because the two sides
differ at exactly that call; whatever has one spelling for both is written where it is used.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from pipeline.errors import DataError, InstallationError

Frame = Any  # pandas.DataFrame or cudf.DataFrame
Array = Any  # numpy.ndarray or cupy.ndarray


@dataclass(frozen=True)
class Backend:
    """One pair of array and frame modules.

    ``xp``: numpy or cupy; ``df``: pandas or cudf; ``reason``: why this one, for the user to read.
    """

    name: Literal["pandas", "cudf"]
    reason: str = field(default="", compare=False)

    @property
    def xp(self) -> Any:
        return _cupy() if self.on_gpu else np

    @property
    def df(self) -> Any:
        if self.on_gpu:
            return _cudf()
        import pandas as pd

        return pd

    @property
    def on_gpu(self) -> bool:
        return self.name == "cudf"

    def __str__(self) -> str:
        label = "cuDF" if self.on_gpu else "pandas"
        return f"{label}: {self.reason}" if self.reason else label

    # -- arrays ------------------------------------------------------------------------------------------------

    def to_host(self, array: Array) -> np.ndarray:
        """The array as NumPy; a copy only where it lives on a device."""
        return _cupy().asnumpy(array) if self.on_gpu else np.asarray(array)

    def asarray(self, values: Any, dtype: Any = None) -> Array:
        """Host or device values as this backend's array."""
        return self.xp.asarray(values, dtype=dtype)

    def empty_aligned(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """An uninitialised C-contiguous array at a 64-byte-aligned address.

        TensorFlow aborts the process on an import that is not aligned. CuPy's allocations are aligned to 512 bytes,
        NumPy's to 16.
        """
        if self.on_gpu:
            return _cupy().empty(shape, dtype=dtype)
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        raw = np.empty(size + 64, dtype=np.uint8)
        offset = -raw.ctypes.data % 64
        return raw[offset : offset + size].view(dtype).reshape(shape)

    def synchronize(self) -> None:
        """Wait until the current stream's work is done; other libraries have streams of their own."""
        if self.on_gpu:
            _cupy().cuda.get_current_stream().synchronize()

    def free_memory(self) -> int:
        """Bytes that can still be allocated where the arrays live."""
        if self.on_gpu:
            return int(_cupy().cuda.runtime.memGetInfo()[0])
        import psutil
        from distributed.system import MEMORY_LIMIT  # knows of control groups, which psutil does not

        return int(min(psutil.virtual_memory().available, MEMORY_LIMIT))

    # -- frames ------------------------------------------------------------------------------------------------

    def from_arrow(self, table: pa.Table) -> Frame:
        """An Arrow table as a frame. Dictionary columns become categories; other strings the frame's strings."""
        if self.on_gpu:
            return _cudf().DataFrame.from_arrow(table)
        import pandas as pd

        strings = {pa.string(): pd.StringDtype("pyarrow", na_value=np.nan)}
        strings[pa.large_string()] = strings[pa.string()]
        return table.to_pandas(types_mapper=strings.get, split_blocks=True, self_destruct=False)

    def frame(self, columns: dict[str, Array], times: tuple[str, ...] = ()) -> Frame:
        """Arrays of one length as a frame with a plain index, without a copy where the side allows.

        Args:
            times: columns of int64 microseconds that become naive datetime64[us].
        """
        if self.on_gpu:
            made = _cudf().DataFrame(columns)
            for name in times:
                made[name] = made[name].astype("datetime64[us]")
            return made
        import pandas as pd

        viewed = {n: c.view("datetime64[us]") if n in times else c for n, c in columns.items()}
        return pd.DataFrame(viewed, copy=False)

    def to_arrow(self, frame: Frame) -> pa.Table:
        """A frame, without its index, as an Arrow table on the host."""
        if self.on_gpu:
            return frame.to_arrow(preserve_index=False)
        return pa.Table.from_pandas(frame, preserve_index=False)

    def to_pandas(self, frame: Frame) -> Any:
        """A frame or series as pandas, for small results that leave the device on purpose."""
        return frame.to_pandas() if self.on_gpu else frame

    def column(self, series: Any) -> Array:
        """A null-free column as an array without a copy. Times come as int64 in the column's own unit.

        Raises:
            DataError: the column holds nulls. (cuDF's ``.values`` would turn integers into floats.)
        """
        if bool(series.hasnans if hasattr(series, "hasnans") else series.isna().any()):
            raise DataError(f"column {series.name!r} holds nulls where none are allowed; fill or reject them at ingest")
        if series.dtype.kind == "M":
            return series.astype("int64").to_cupy() if self.on_gpu else series.to_numpy().view(np.int64)
        return series.to_cupy() if self.on_gpu else series.to_numpy()

    def numbers(self, series: Any) -> tuple[Array, Array, str]:
        """What a series of any type holds, whether it is missing, and its kind.

        Returns:
            values [n], bool[n], and "b", "i", "u" or "f" (values of that type, 0 where missing), "s" (text, as hashes,
            int64), or another letter for a type that is neither number nor text (no values then), "m" and "M" of times.
        """
        xp = self.xp
        missing = series.isna()
        missing = missing.to_cupy() if self.on_gpu else missing.to_numpy(dtype=bool)
        if series.dtype.name == "category":
            kind = series.cat.categories.dtype.kind
            if kind in "biuf":  # what mapping a column of categories gives
                series, kind = series.astype("float64"), "f"
        else:
            kind = series.dtype.kind
        if kind in "OTU":
            if not (series.dtype.name == "category" or self.df.api.types.is_string_dtype(series.dtype)):
                return missing, missing, "O"
            text = series.astype("str").fillna("")
            return self.hash_strings(text), missing, "s"
        if kind not in "biuf":
            return missing, missing, kind
        if bool(missing.any()):
            series = series.fillna(False if kind == "b" else 0)
        kinds = {"b": "bool", "i": "int64", "u": "uint64", "f": "float64"}
        series = series.astype(kinds[kind])
        values = series.to_cupy() if self.on_gpu else series.to_numpy()
        if kind == "f":
            nan = values != values
            return xp.where(nan, 0.0, values), missing | nan, kind
        return values, missing, kind

    def categories(self, series: Any) -> list[str]:
        """The distinct values that a column's rows may have: of text, those they have."""
        if series.dtype.name != "category":
            series = series.astype("category")
        found = series.cat.categories
        return found.to_arrow().to_pylist() if self.on_gpu else list(found)

    def codes(self, series: Any, vocabulary: list[str], of: Callable[[str], str] = str) -> Array:
        """Each row's position in ``vocabulary``, int32[n]; -1 for nulls and for values not in it.

        ``of``: what of a value is in the vocabulary.

        Categories are mapped, not rows, so the cost is that of one gather.
        """
        xp = self.xp
        if series.dtype.name != "category":
            series = series.astype("category")
        names = self.categories(series)
        position = {name: i for i, name in enumerate(vocabulary)}
        lookup = np.array([position.get(of(name), -1) for name in names] + [-1], dtype=np.int32)
        if not self.on_gpu:
            return lookup[series.cat.codes.to_numpy()]  # a null is -1, the last
        # cuDF's codes are unsigned in places; any code outside the categories is a null.
        codes = series.cat.codes.to_cupy().astype(xp.int32)
        codes = xp.where((codes < 0) | (codes >= len(names)), len(names), codes)
        return xp.asarray(lookup)[codes]

    def hash_strings(self, series: Any, seed: int = 0) -> Array:
        """XXH64 of each value's UTF-8 text, viewed as int64[n]. Integers are hashed as decimal text.

        The same on both backends. On the CPU only distinct values are hashed. Nulls must have been rejected.
        """
        if self.on_gpu:
            hashed = series.astype("str").hash_values(method="xxhash64", seed=seed)
            return hashed.to_cupy().view(np.int64)
        import pandas as pd
        import xxhash

        codes, distinct = pd.factorize(series)
        digest = xxhash.xxh64_intdigest
        hashes = np.fromiter((digest(str(v).encode(), seed) for v in distinct), dtype=np.uint64, count=len(distinct))
        return hashes.view(np.int64)[codes] if len(distinct) else np.empty(0, dtype=np.int64)

    # -- compiled twins ----------------------------------------------------------------------------------------

    @property
    def compiled(self) -> bool:
        """Whether numba is here to compile the CPU twins of the array kernels."""
        return not self.on_gpu and importlib.util.find_spec("numba") is not None

    @property
    def kernels(self) -> Any:
        """The module of this backend's kernels on sorted segments: the array functions, or their compiled twins."""
        return importlib.import_module(f"pipeline.features.{'compiled' if self.compiled else 'kernels'}")

    @property
    def aggregates(self) -> Any:
        """The same of the functions on windows of positions."""
        return importlib.import_module(f"pipeline.features.{'compiled_' if self.compiled else ''}aggregates")

    @property
    def filters(self) -> Any:
        """The same of the filter over exposures."""
        return importlib.import_module(f"pipeline.features.{'compiled_' if self.compiled else ''}filters")


PANDAS = Backend("pandas", "asked for")

# How much of a device cuDF and CuPy may hold in one process, as fractions of it: DESIGN's "GPU memory". The rest is
# TensorFlow's and the CUDA context's. What lies unused above the release threshold goes back to the device, where
# TensorFlow finds it; by RMM's own default it never does.
RMM_MAXIMUM = 0.7
RMM_RELEASE = 0.3


@functools.cache
def _cupy() -> Any:
    import cupy

    return cupy


@functools.cache
def _cudf() -> Any:
    import cudf

    return cudf


def gpu_problem() -> str | None:
    """Why the GPU cannot be used here, or None when it can."""
    missing = [m for m in ("cudf", "cupy") if importlib.util.find_spec(m) is None]
    if missing:
        return f"{' and '.join(missing)} not installed"
    try:
        count = _cupy().cuda.runtime.getDeviceCount()
    except Exception as error:  # the CUDA runtime raises types of its own, and different ones by version
        return f"no CUDA device ({type(error).__name__}: {error})"
    return None if count else "no CUDA device"


def choose(wanted: Literal["auto", "cpu", "gpu"] = "auto") -> Backend:
    """The backend of this run.

    Args:
        wanted: "auto" takes the GPU where there is one.
    Raises:
        InstallationError: "gpu" was asked for and cannot be had.
    """
    if wanted == "cpu":
        return Backend("pandas", "asked for with backend=cpu")
    problem = gpu_problem()
    if problem is None:
        runtime = _cupy().cuda.runtime
        name = runtime.getDeviceProperties(0)["name"]
        name = name.decode() if isinstance(name, bytes) else name
        count = runtime.getDeviceCount()
        return Backend("cudf", f"{count} GPU{'s' if count > 1 else ''}, {name}")
    if wanted == "gpu":
        raise InstallationError(
            f"backend=gpu was asked for, but this machine cannot: {problem}. "
            "Install eventgrain[gpu] on a machine with an NVIDIA GPU, or use backend=auto or backend=cpu"
        )
    return Backend("pandas", problem)


def backend_of(data: Any) -> Backend:
    """The backend that a frame, series or array belongs to."""
    module = type(data).__module__.partition(".")[0]
    return Backend("cudf" if module in ("cudf", "cupy") else "pandas", "follows the data")


@functools.cache
def claim_device() -> None:
    """Let RMM's asynchronous resource serve cuDF and CuPy in this process, with a maximum and a release threshold.

    Makes a CUDA context, so call it after the cluster has started; dask-cuda does the same in its own workers.
    """
    import rmm
    from rmm.allocators.cupy import rmm_cupy_allocator

    total = int(_cupy().cuda.runtime.memGetInfo()[1])
    release, maximum = (int(total * share) // 256 * 256 for share in (RMM_RELEASE, RMM_MAXIMUM))
    pool = rmm.mr.CudaAsyncMemoryResource(release_threshold=release)
    rmm.mr.set_current_device_resource(rmm.mr.LimitingResourceAdaptor(pool, allocation_limit=maximum))
    _cupy().cuda.set_allocator(rmm_cupy_allocator)
