"""What new source files and the store agree on, before any work: the mapping fits, and a column has one type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from pipeline.config import Config
from pipeline.errors import ConfigError, SourceError
from pipeline.events.commit import Settings, table_schema, table_settings
from pipeline.events.schema import carried_type, map_columns, mapped_columns, to_micros
from pipeline.events.setaside import SetAside
from pipeline.events.sources import SourceFile, Sources
from pipeline.options import Source


def agree(
    config: Config, sources: Sources, table: Any, uri: str, aside: SetAside
) -> tuple[Settings, dict[str, pa.DataType]]:
    """Check the mapping against every new file and fix the store's settings, before any work.

    A file that the mapping does not fit is set aside, and left out of ``sources``.
    """
    source = config.source
    assert source is not None
    mapped = mapped_columns(source)
    stored = table_schema(table) if table is not None else pa.schema([])
    carried: dict[str, pa.DataType] = {n: stored.field(n).type for n in source.carry if n in stored.names}
    texts = False
    for file in {u.file.name: u.file for u in sources.units}.values():
        try:
            carried, text = _fit(source, file, mapped, carried)
            texts |= text
        except (ConfigError, SourceError) as error:
            aside.add(file.found, error)
    sources.drop(aside.files)
    made = "event_id" not in mapped
    settings = Settings("string" if texts else "int64", made, config.deduplicate)
    if table is None:
        return settings, carried
    have = table_settings(table, uri)
    if have.made_ids != made:
        state = "has event ids made from whole rows" if have.made_ids else "has the source's own event ids"
        raise ConfigError(f"the store {uri!r} {state}; source.columns.event_id cannot change. Use another store")
    if have.deduplicate != config.deduplicate:
        raise ConfigError(
            f"the store {uri!r} was made with deduplicate={have.deduplicate}; use another store to change it"
        )
    return have, carried


def _fit(
    source: Source, file: SourceFile, mapped: Mapping[str, str], carried: Mapping[str, pa.DataType]
) -> tuple[dict[str, pa.DataType], bool]:
    """One file's columns against the mapping: the carried columns' types with its own, and whether its ids are text.

    Raises:
        ConfigError, SourceError: a column is missing or of a type that does not fit; names it and the file.
    """
    where = repr(file.name)
    map_columns(source, file.schema.names, where, file.hive)
    types = {f.name: f.type for f in file.schema} | {n: pa.string() for n in file.hive if n not in file.schema.names}
    for name in ("ts", "ingested_at"):
        if name in mapped:  # refuses numbers without a unit, and types that are no time
            to_micros(pa.nulls(0, types[mapped[name]]), source.time_unit, mapped[name], where)
    found = dict(carried)
    for name in source.carry:
        kind = carried_type(types[name], name)
        before = found.setdefault(name, kind)
        if before != kind and not pa.types.is_null(types[name]):
            raise SourceError(
                f"column {name!r} is {types[name]} in {where}, but {before} in the files before it; "
                "a carried column has one type"
            )
    if "event_id" not in mapped:
        return found, False
    kind = types[mapped["event_id"]]
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    text = not (pa.types.is_signed_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind))
    return found, text or bool(pa.types.is_uint64(kind))
