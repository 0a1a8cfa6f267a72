"""NumPy as a stand-in for CuPy: raises where CuPy would wrap, leave the result undefined, or have no such function.

Use it as ``xp``: ``from tests.strict_numpy import xp``. Arrays made by it are :class:`StrictArray`; operations on them
give StrictArrays again. It refuses
- gathers and scatters with an index outside ``[0, n)``: CuPy wraps silently (negative literals in slices are fine);
- scatters that name an element twice: undefined in CuPy;
- functions that CuPy lacks, and ``accumulate``/``reduceat`` of anything but ``add``;
- mixing in plain NumPy arrays of one element or more: CuPy wants them moved first;
- silent conversion to NumPy through ``np.asarray``-like functions of the real module.
"""

from __future__ import annotations

from typing import Any

import numpy as np

# What the kernels may use: in CuPy 14 under the same name with the same meaning.
_FUNCTIONS = {
    *("abs", "add", "all", "any", "arange", "argsort", "bincount", "clip", "concatenate", "cumsum", "diff", "empty"),
    *("equal", "exp", "flatnonzero", "floor", "rint", "full", "maximum", "minimum", "multiply", "nonzero", "ones"),
    *("repeat", "searchsorted", "sort", "sum", "take", "where", "zeros"),
}
_TYPES = {"bool_", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint32", "uint64"}


class StrictArray(np.ndarray):
    """An array that behaves like NumPy's where CuPy does too, and raises elsewhere."""

    def __array_finalize__(self, parent: Any) -> None:
        pass

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **options: Any) -> Any:
        if method in ("accumulate", "reduceat", "at") and ufunc is not np.add:
            raise TypeError(f"cupy has no {ufunc.__name__}.{method}")
        for value in inputs:
            _refuse_plain(value)
        plain = [v.view(np.ndarray) if isinstance(v, StrictArray) else v for v in inputs]
        if out is not None:
            options["out"] = tuple(o.view(np.ndarray) if isinstance(o, StrictArray) else o for o in out)
        return _strict(getattr(ufunc, method)(*plain, **options))

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        raise TypeError(f"numpy.{function.__name__} was called on a device array; use xp.{function.__name__}")

    def __getitem__(self, key: Any) -> Any:
        self._check(key)
        return _strict(self.view(np.ndarray)[_plain(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self._check(key)
        _refuse_plain(value)
        if isinstance(key, np.ndarray) and key.dtype.kind in "iu" and len(np.unique(key.view(np.ndarray))) != key.size:
            raise IndexError("a scatter names an element twice; CuPy leaves the result undefined")
        self.view(np.ndarray)[_plain(key)] = _plain(value)

    def _check(self, key: Any) -> None:
        for axis, part in enumerate(key if isinstance(key, tuple) else (key,)):
            if isinstance(part, np.ndarray):
                _refuse_plain(part)
                index = part.view(np.ndarray)
                if index.dtype.kind in "iu" and index.size:
                    if index.min() < 0 or index.max() >= self.shape[axis]:
                        raise IndexError(
                            f"index {index.min()} .. {index.max()} on an axis of {self.shape[axis]}; CuPy would wrap"
                        )
                elif index.dtype.kind == "b" and len(index) != self.shape[axis]:
                    raise IndexError("a mask of another length")

    def any(self, *args: Any, **kwargs: Any) -> Any:
        return _strict(self.view(np.ndarray).any(*args, **kwargs))

    def all(self, *args: Any, **kwargs: Any) -> Any:
        return _strict(self.view(np.ndarray).all(*args, **kwargs))


class _Module:
    """The functions of NumPy that CuPy has too, on strict arrays."""

    def __getattr__(self, name: str) -> Any:
        if name in _TYPES:
            return getattr(np, name)
        if name == "asarray":
            return lambda values, dtype=None: np.asarray(_plain(values), dtype=dtype).view(StrictArray)
        if name not in _FUNCTIONS:
            raise AttributeError(f"cupy may lack {name!r}: check it, then list it in tests/strict_numpy.py")
        function = getattr(np, name)

        def strict(*args: Any, **kwargs: Any) -> Any:
            for value in (*args, *kwargs.values()):
                _refuse_plain(value)
            if name == "searchsorted" and not all(isinstance(a, StrictArray) for a in args[:2]):
                raise TypeError("cupy.searchsorted wants device arrays")
            if name == "argsort" and kwargs.get("kind") != "stable":
                raise TypeError("an argsort that is not stable may order equal keys differently in CuPy")
            return _strict(function(*map(_plain, args), **{k: _plain(v) for k, v in kwargs.items()}))

        return strict


def _plain(value: Any) -> Any:
    if isinstance(value, StrictArray):
        return value.view(np.ndarray)
    if isinstance(value, tuple | list):
        return type(value)(_plain(v) for v in value)
    return value


def _strict(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_strict(v) for v in value)
    if isinstance(value, np.ndarray):
        return value.view(StrictArray)
    # Reductions give 0-d arrays in CuPy.
    return np.asarray(value).view(StrictArray) if isinstance(value, np.generic) else value


def _refuse_plain(value: Any) -> None:
    if isinstance(value, tuple | list):
        for v in value:
            _refuse_plain(v)
    elif isinstance(value, np.ndarray) and not isinstance(value, StrictArray) and value.ndim:
        raise TypeError("a NumPy array meets a device array; move it with xp.asarray first")


xp = _Module()
