"""One page of the rows of a table, for every list that is ordered by creation."""

from collections.abc import Sequence
from typing import Any, Literal

from sqlalchemy import Column, Connection, RowMapping, Select, true, tuple_
from sqlalchemy.sql import ColumnElement

from serve_app.errors import InvalidRequest
from serve_app.types import PageQuery


def select_page(
    connection: Connection,
    rows: Select[Any],  # its columns differ from list to list
    key: tuple[Column[Any], Column[Any]],
    page: PageQuery,
    only: ColumnElement[bool] | None = None,
) -> tuple[Sequence[RowMapping], bool]:
    """The rows of a page, and whether more follow in the direction that was asked for.

    `key` is (created_at, id). `only` narrows the list, but not where a page may begin: a row that no longer
    passes is still a place in the list.
    """
    ids = key[1]
    position = tuple_(*key)
    query = rows.where(true() if only is None else only)
    ascends = page.order == "asc"
    if page.after is not None:
        start = _position(connection, rows, key, page.after, "after")
        query = query.where(position > start if ascends else position < start)
    if page.before is not None:
        end = _position(connection, rows, key, page.before, "before")
        query = query.where(position < end if ascends else position > end)

    # Only `before` given: the nearest rows are wanted, so the list is read from its other end and turned round.
    backwards = page.before is not None and page.after is None
    if ascends != backwards:
        query = query.order_by(key[0].asc(), ids.asc())
    else:
        query = query.order_by(key[0].desc(), ids.desc())
    found = connection.execute(query.limit(page.limit + 1)).mappings().all()
    kept = found[: page.limit]
    return (kept[::-1] if backwards else kept), len(found) > page.limit


def _position(
    connection: Connection,
    rows: Select[Any],  # as above
    key: tuple[Column[Any], Column[Any]],
    cursor: str,
    param: Literal["after", "before"],
) -> ColumnElement[Any]:
    row = connection.execute(rows.with_only_columns(*key).where(key[1] == cursor)).first()
    if row is None:
        raise InvalidRequest(f"'{param}' is {cursor!r}, which is not in this list", param=param)
    return tuple_(row[0], row[1])
