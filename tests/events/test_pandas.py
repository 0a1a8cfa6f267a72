"""A store's Dask dataframe behaves as pandas does on the same source files, and docs/pandas.md says at what cost.

Each question of the table there is a function here. ``PLAIN``: the same function on both. ``IDIOMS``: what Dask has no
or only an approximate word for, as written for a store, beside the plain pandas that it equals.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.backend import PANDAS, Backend, backend_of
from pipeline.events.ingest import ingest
from pipeline.events.store import EventStore
from tests.events.logs import COLUMNS, config, random_rows, write

Frame = Any
KINDS = ["open", "click"]
CAMPAIGNS = pd.DataFrame({"campaign": ["a", "b", "Ω"], "topic": ["news", "sale", "news"]})


def whole(events: Frame, question: Callable[[Frame], Frame]) -> Frame:
    """A question about each subscriber, asked partition by partition: every subscriber is whole in one."""
    return events.map_partitions(question, enforce_metadata=False, meta=question(empty(events)))


def empty(events: Frame) -> Frame:
    meta = events._meta.copy()
    for name in meta.columns:
        if meta[name].dtype.name == "category":
            meta[name] = meta[name].astype("str").astype("category")
    return meta


def several(f: Frame) -> Frame:
    return f.groupby("event").value.agg(["sum", "mean", "min", "max", "count", "std"])


def named(f: Frame) -> Frame:
    """Names as text: what is merged or compared with text of elsewhere."""
    return f.assign(campaign=f.campaign.astype("str"), provider=f.provider.astype("str"))


def subscribers_by_kind(p: Frame) -> Frame:
    return p.reset_index().groupby("event", observed=True).subscriber_key.nunique().reset_index()


def topics(p: Frame) -> Frame:
    return p.merge(backend_of(p).df.DataFrame(CAMPAIGNS), on="campaign")


def gaps(p: Frame) -> Frame:
    return p.ts.astype("int64").groupby(level=0).diff()


PLAIN: dict[str, Callable[[Frame], Frame]] = {
    "size of groups": lambda f: f.groupby(["campaign", "event"], observed=True).size(),
    "several functions": several,
    "functions by column": lambda f: f.groupby("event").agg({"value": "sum", "event_id": "max"}),
    "resample by floor": lambda f: f.groupby([f.ts.dt.floor("D"), "event"], observed=True).size(),
    "by hour of day": lambda f: f.groupby(f.ts.dt.hour).value.mean(),
    "filter with isin": lambda f: f[f.event.isin(KINDS) & (f.value > 0)].value.sum(),
    "filter, then rows": lambda f: f[f.event.isin(KINDS)].event_id,
    "a column more": lambda f: f.assign(double=f.value * 2, late=f.ts.dt.dayofweek >= 5).groupby("late").double.sum(),
    "min and max": lambda f: f.ts.max() - f.ts.min(),
    "largest rows": lambda f: f[["event_id", "value"]].nlargest(10, ["value", "event_id"]),
    "first and last": lambda f: f.groupby("subscriber_key").ts.agg(["min", "max"]),
    "arithmetic": lambda f: (f.value * f.event_id).sum(),
}
# name -> as written for a store, the pandas that it equals
IDIOMS: dict[str, tuple[Callable[[Frame], Frame], Callable[[Frame], Frame]]] = {
    "merge with a small table": (
        lambda f: whole(named(f), topics).groupby("topic").value.sum(),
        lambda f: f.merge(CAMPAIGNS, on="campaign").groupby("topic").value.sum(),
    ),
    "pivot_table": (
        lambda f: f.groupby(["campaign", "event"], observed=True).value.sum(),
        lambda f: f.pivot_table(index="campaign", columns="event", values="value", aggfunc="sum").stack().dropna(),
    ),
    "crosstab": (
        lambda f: f.groupby(["campaign", "event"], observed=True).size(),
        lambda f: pd.crosstab(f.campaign.to_numpy(), f.event.to_numpy()).stack().loc[lambda s: s > 0],
    ),
    "distinct subscribers": (
        lambda f: whole(f, subscribers_by_kind).groupby("event").subscriber_key.sum(),
        lambda f: f.reset_index().groupby("event").subscriber_key.nunique(),
    ),
    "how many subscribers": (
        lambda f: whole(f, lambda p: p.reset_index()[["subscriber_key"]].drop_duplicates()).subscriber_key.count(),
        lambda f: f.index.nunique(),
    ),
    "cumcount": (
        lambda f: whole(f, lambda p: p.groupby(level=0).cumcount()),
        lambda f: f.groupby(level=0).cumcount(),
    ),
    "transform": (
        lambda f: whole(f, lambda p: p.groupby(level=0).value.transform("sum")),
        lambda f: f.groupby(level=0).value.transform("sum"),
    ),
    "gap since the one before": (lambda f: whole(f, gaps), gaps),
    "each one's first rows": (
        lambda f: whole(f, lambda p: p.groupby(level=0).head(2).event_id),
        lambda f: f.groupby(level=0).head(2).event_id,
    ),
    "value_counts": (lambda f: f.event.value_counts(split_out=1), lambda f: f.event.value_counts()),
    "nunique": (lambda f: f.campaign.drop_duplicates(split_out=1).count(), lambda f: f.campaign.nunique()),
    "nunique by group": (
        lambda f: f.groupby("event").event_id.nunique(split_out=1),
        lambda f: f.groupby("event").event_id.nunique(),
    ),
    "drop_duplicates": (
        lambda f: named(f)[["campaign", "provider"]].drop_duplicates(split_out=1).reset_index(drop=True),
        lambda f: f[["campaign", "provider"]].drop_duplicates().reset_index(drop=True),
    ),
    "quantiles": (lambda f: f.groupby("value").size(), lambda f: f.groupby("value").size()),
    "rolling day counts": (
        lambda f: f.groupby(f.ts.dt.floor("D")).size(),
        lambda f: f.groupby(f.ts.dt.floor("D")).size(),
    ),
}
SHUFFLED: dict[str, tuple[Callable[[Frame], Frame], Callable[[Frame], Frame]]] = {
    "nunique": (lambda f: f.event_id.nunique(), lambda f: f.event_id.nunique()),
    "sort": (lambda f: f.sort_values("event_id").event_id, lambda f: f.sort_values("event_id").event_id),
    "set another index": (lambda f: f.set_index("event_id").value, lambda f: f.set_index("event_id").value),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pandas")
    rows = [dict(r, amount=r["amount"] if r["amount"] is not None else 0) for r in random_rows(1500, subscribers=60)]
    write(folder / "raw/0.parquet", rows[:700])
    write(folder / "raw/1.parquet", rows[700:])
    return folder


@pytest.fixture(scope="module")
def oracle(source: Path) -> pd.DataFrame:
    """The source files as plain pandas reads them, under the canonical names, in the store's order."""
    frame = pd.read_parquet(source / "raw").query("client == 'acme'")
    frame = frame.rename(columns={theirs: ours for ours, theirs in COLUMNS.items()}).drop(columns="client")
    frame["ts"] = frame.ts.dt.tz_localize(None)
    frame["subscriber_key"] = PANDAS.hash_strings(frame.subscriber)
    frame = frame.sort_values(["subscriber_key", "ts", "event", "campaign", "event_id"], na_position="first")
    return frame.set_index("subscriber_key")


@pytest.fixture
def store(source: Path, backend: Backend) -> EventStore:
    settings = config(source, store=str(source / f"store-{backend.name}"))
    if not Path(settings.store_uri).exists():
        ingest(settings, backend)
    return EventStore(settings.store_uri, backend)


def settle(answer: Any) -> Any:
    """An answer in one form: on the host, text as text, sorted by what it is of."""
    answer = answer.compute() if hasattr(answer, "compute") else answer
    answer = answer.to_pandas() if hasattr(answer, "to_pandas") else answer
    if not isinstance(answer, pd.Series | pd.DataFrame):
        return answer
    frame = answer.to_frame("answer") if isinstance(answer, pd.Series) else answer
    frame = frame.reset_index()
    frame.columns = pd.Index(range(frame.shape[1]))
    for column in frame.columns:
        if frame[column].dtype.name in ("category", "object", "str", "string") or "string" in str(frame[column].dtype):
            frame[column] = frame[column].astype("object").where(frame[column].notna(), "").astype("str")
        elif frame[column].dtype.kind == "M":
            frame[column] = frame[column].astype("datetime64[us]")
    return frame.sort_values(list(frame.columns), ignore_index=True)


def check(found: Any, expected: Any) -> None:
    found, expected = settle(found), settle(expected)
    if not isinstance(expected, pd.DataFrame):
        assert found == expected or np.isclose(found, expected)
        return
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)


def test_exact_quantiles_and_rolling_days(store: EventStore, oracle: pd.DataFrame) -> None:
    """What the small answer of the plan becomes, once computed."""
    events = store.read("acme", partitions=7)
    counts = store.backend.to_pandas(IDIOMS["quantiles"][0](events).compute()).sort_index()
    for q in (0.1, 0.5, 0.9):
        rank = counts.cumsum().searchsorted(int(np.ceil(q * counts.sum())))
        assert counts.index[rank] == np.quantile(oracle.value, q, method="inverted_cdf")
    days = store.backend.to_pandas(IDIOMS["rolling day counts"][0](events).compute()).sort_index()
    expected = oracle.groupby(oracle.ts.dt.floor("D")).size().rolling(3).mean()
    np.testing.assert_array_equal(days.rolling(3).mean().to_numpy(), expected.to_numpy())


def shuffles(answer: Any) -> list[str]:
    """The steps of an answer's plan that move rows between partitions."""
    plan = answer.optimize(fuse=False).expr
    names = {type(node).__name__ for node in plan.walk()}
    return sorted(
        n for n in names if re.search("shuffle|^setindex|^setpartition|^sortvalues|hashjoin", n, re.IGNORECASE)
    )


@pytest.mark.parametrize("partitions", [1, 2, 7])
@pytest.mark.parametrize("name", PLAIN)
def test_plain_pandas(store: EventStore, oracle: pd.DataFrame, name: str, partitions: int) -> None:
    answer = PLAIN[name](store.read("acme", partitions=partitions))
    check(answer, PLAIN[name](oracle))


@pytest.mark.parametrize("partitions", [1, 2, 7])
@pytest.mark.parametrize("name", IDIOMS)
def test_idioms(store: EventStore, oracle: pd.DataFrame, name: str, partitions: int) -> None:
    ours, theirs = IDIOMS[name]
    check(ours(store.read("acme", partitions=partitions)), theirs(oracle))


@pytest.mark.parametrize("name", [*PLAIN, *IDIOMS])
def test_free_of_a_shuffle(store: EventStore, name: str) -> None:
    question = PLAIN.get(name) or IDIOMS[name][0]
    assert shuffles(question(store.read("acme", partitions=7))) == []


@pytest.mark.parametrize("name", SHUFFLED)
def test_shuffled(store: EventStore, oracle: pd.DataFrame, name: str) -> None:
    ours, theirs = SHUFFLED[name]
    answer = ours(store.read("acme", partitions=7))
    assert shuffles(answer)
    check(answer, theirs(oracle))


def test_the_document_lists_every_question() -> None:
    text = (Path(__file__).parents[2] / "docs" / "pandas.md").read_text()
    listed = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
    assert set(PLAIN) | set(IDIOMS) <= set(listed)
    assert len(set(PLAIN) | set(IDIOMS)) >= 20
