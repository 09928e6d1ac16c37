"""A store's table in LanceDB, as its writer and its readers know it: its name, its columns, and filters over them."""

import json
import math
import re
from collections.abc import Iterable, Mapping

import lancedb
import pyarrow as pa

from serve_app.errors import InvalidRequest
from serve_app.types import AttributeValue, Json
from serve_app.types.knowledge import Comparison, Compound, Filter
from serve_app.vitals import CacheSize

_NAME = re.compile(r"vs_[0-9a-f]+(_[0-9a-f]+)?")

# Null where a file has none. Tables that were made before them get these columns with their next commit.
LATER_FIELDS = (
    pa.field("key", pa.string()),
    pa.field("version", pa.int64()),
    pa.field("page", pa.int32()),
    pa.field("last_page", pa.int32()),
    pa.field("heading", pa.list_(pa.string())),
)
RESULT_COLUMNS = (
    *("passage_id", "file_id", "filename", "text", "start", "attributes"),
    *(field.name for field in LATER_FIELDS),
)

ARROW_TYPES = {"s": pa.string(), "n": pa.float64(), "b": pa.bool_()}


def checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise InvalidRequest(f"{name!r} is no id of a vector store", param="vector_store_id")
    return name


def parts_of(name: str) -> tuple[str, str]:
    """The store's id, and the suffix that the name of a further table of it has; "" for the first."""
    prefix, number, *suffix = name.split("_")
    return f"{prefix}_{number}", "".join(f"_{each}" for each in suffix)


def open_session() -> lancedb.Session:
    # By default the caches of one process may grow to 7 GB.
    return lancedb.Session(index_cache_size_bytes=512 * 2**20, metadata_cache_size_bytes=128 * 2**20)


def session_size(session: lancedb.Session) -> CacheSize:
    """Of both caches together, with what of the indices has been read into them."""
    return CacheSize(session.approx_num_items, session.size_bytes)


# --- attributes and filters ----------------------------------------------------------------------

# `n_79656172` holds the numbers that files give the key "year": the hexadecimal digits keep users' words out of SQL.


def column_of(key: str, value: AttributeValue) -> str:
    kind = "b" if isinstance(value, bool) else "s" if isinstance(value, str) else "n"
    return f"{kind}_{key.encode().hex()}"


def present(columns: Iterable[str], schema: pa.Schema) -> list[str]:
    names = set(schema.names)
    return [column for column in columns if column in names]


def attribute_columns(schema: pa.Schema) -> list[str]:
    return [name for name in schema.names if name[:2] in ("s_", "n_", "b_")]


def column_values(attributes: Mapping[str, AttributeValue]) -> Json:
    columns: Json = {column_of(key, value): value for key, value in attributes.items()}
    return columns | {"attributes": json.dumps(dict(attributes), ensure_ascii=False)}


class Where:
    """Filters as SQL over the columns of one store. Each part is true or false for every row, never null."""

    def __init__(self, schema: pa.Schema) -> None:
        self._columns = set(attribute_columns(schema))
        self._keys = {bytes.fromhex(name[2:]).decode() for name in self._columns}

    def of(self, filter_: Filter) -> str:
        if isinstance(filter_, Compound):
            return "(" + f" {filter_.type.upper()} ".join(self.of(each) for each in filter_.filters) + ")"
        self._require_known(filter_.key)
        values = filter_.value if isinstance(filter_.value, tuple) else (filter_.value,)
        match filter_.type:
            case "eq" | "in":
                return self._is_one_of(filter_.key, values)
            case "ne" | "nin":
                return f"(NOT {self._is_one_of(filter_.key, values)})"
            case _:
                return self._compared(filter_, values[0])

    def _is_one_of(self, key: str, values: tuple[AttributeValue, ...]) -> str:
        # A list and not a chain of ORs: of tens of thousands the chain overflows the stack of LanceDB.
        literals: dict[str, list[str]] = {}
        for value in values:
            if (column := column_of(key, value)) in self._columns:
                literals.setdefault(column, []).append(literal(value))
        equal = [f"({column} IS NOT NULL AND {column} IN ({', '.join(each)}))" for column, each in literals.items()]
        return "(" + " OR ".join(equal) + ")" if equal else "false"

    def _compared(self, comparison: Comparison, value: AttributeValue) -> str:
        column = column_of(comparison.key, value)
        operator = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}[comparison.type]
        if column not in self._columns:
            return "false"
        return f"({column} IS NOT NULL AND {column} {operator} {literal(value)})"

    def _require_known(self, key: str) -> None:
        if key not in self._keys:
            known = ", ".join(repr(each) for each in sorted(self._keys)) or "none"
            raise InvalidRequest(
                f"No file in this vector store has the attribute {key!r}; the attributes there are: {known}",
                param="filters",
                code="unknown_attribute",
            )


def literal(value: AttributeValue) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    if not math.isfinite(value):
        raise InvalidRequest(f"A filter compares with finite numbers, not {value!r}", param="filters")
    return repr(float(value))
