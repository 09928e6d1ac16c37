"""Search by words in what is said, in one conversation or in all of them.

The database looks through the JSON of the items, which is a little more than their text; so no second copy of it is
needed. What it finds is then looked at exactly.
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, Text, cast, func, null, select, tuple_

from serve_app.conversation.items import item_text
from serve_app.conversation.past import Past, seqs_of
from serve_app.errors import InvalidRequest
from serve_app.storage.schema import items, logs
from serve_app.types.conversation import FoundItems, ItemSearch

MAX_WORDS = 20

_ROWS_AT_ONCE = 100
_COLUMNS = (items.c.log_id, items.c.seq, items.c.created_at, items.c.body)

# SQLAlchemy does not know the columns of a row as types.
ItemRow = Row[Any]


def search_past(connection: Connection, past: Past, search: ItemSearch) -> FoundItems:
    """Of one conversation, all of its past. Raises `InvalidRequest` for an unknown page, as the next one does."""
    end = int(_parse(r"(\d{1,9})", search.page)[0]) if search.page else seqs_of(past).stop
    words = _words(search)
    found: list[ItemRow] = []
    for segment in reversed(past):
        if len(found) <= search.limit:
            query = _select(search, words).where(
                items.c.log_id == segment.log_id,
                items.c.seq >= segment.seqs.start,
                items.c.seq < min(segment.seqs.stop, end),
            )
            query = query.order_by(items.c.seq.desc())
            found += _take(connection, query, words, search.limit + 1 - len(found))
    return _page(found, search, lambda row: str(row.seq))


def search_all(connection: Connection, search: ItemSearch) -> FoundItems:
    """Of all conversations that have the metadata. What forks share is found once, in the log that holds it."""
    words = _words(search)
    query = _select(search, words).join(logs, logs.c.id == items.c.log_id).where(logs.c.is_conversation)
    query = query.where(*has_metadata(search.metadata))
    position = (items.c.created_at, items.c.log_id, items.c.seq)
    if search.page:
        time, seq, log_id = _parse(r"(\d{1,12})\.(\d{1,9})\.(\w{1,80})", search.page)
        query = query.where(tuple_(*position) < tuple_(int(time), log_id, int(seq)))
    query = query.order_by(*(column.desc() for column in position))
    found = _take(connection, query, words, search.limit + 1)
    return _page(found, search, lambda row: f"{row.created_at}.{row.seq}.{row.log_id}")


def has_metadata(metadata: dict[str, str]) -> list[ColumnElement[bool]]:
    """Conditions on `logs`, the same on both databases for any key, as paths into JSON are not."""
    stored = cast(logs.c.metadata, Text)
    # Written by the same `json.dumps`. Quotes within a value are escaped, so that it cannot look like a pair.
    pairs = [json.dumps({key: value})[1:-1] for key, value in metadata.items()]
    # LIKE would not tell a from A on SQLite.
    return [func.replace(stored, pair, "") != stored for pair in pairs]


def _words(search: ItemSearch) -> list[str]:
    words = search.query.lower().split()
    if not 0 < len(words) <= MAX_WORDS:
        raise InvalidRequest(f"'query' has {len(words)} words; it must have 1 to {MAX_WORDS}.", param="query")
    return words


def _select(search: ItemSearch, words: Sequence[str]) -> Select[Any]:
    body = cast(items.c.body, Text)
    query = select(*_COLUMNS).where(*(body.ilike(_pattern(word), escape="/") for word in words))
    if search.created_after is not None:
        query = query.where(items.c.created_at >= search.created_after)
    if search.created_before is not None:
        query = query.where(items.c.created_at < search.created_before)
    return query.where(items.c.body.is_not(null()))


def _pattern(word: str) -> str:
    """Of LIKE, for the JSON of a text that holds the word. Any escaped letter will do for one whose case may differ."""
    escaped = re.sub(r"[/%_]", r"/\g<0>", json.dumps(word)[1:-1])
    return "%" + re.sub(r"\\u[0-9a-f]{4}", r"\\u____", escaped) + "%"


def _take(connection: Connection, query: Select[Any], words: Sequence[str], count: int) -> list[ItemRow]:
    """The first rows whose text holds every word. Not more are read than are needed."""
    taken: list[ItemRow] = []
    with connection.execute(query.execution_options(yield_per=_ROWS_AT_ONCE)) as rows:
        for row in rows:
            text = item_text(row.body).lower()
            if all(word in text for word in words):
                taken.append(row)
                if len(taken) == count:
                    break
    return taken


def _page(rows: Sequence[ItemRow], search: ItemSearch, cursor: Callable[[ItemRow], str]) -> FoundItems:
    return FoundItems(
        data=tuple(
            {
                "object": "conversation.search_result",
                "conversation_id": search.conversation_id or row.log_id,
                "created_at": row.created_at,
                "item": row.body,
            }
            for row in rows[: search.limit]
        ),
        next_page=cursor(rows[search.limit - 1]) if len(rows) > search.limit else None,
    )


def _parse(pattern: str, page: str) -> Sequence[str]:
    match = re.fullmatch(pattern, page, re.ASCII)
    if match is None:
        raise InvalidRequest(f"'page' is {page!r}, which is no 'next_page' of a search like this.", param="page")
    return match.groups()
