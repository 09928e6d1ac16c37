"""What the model is shown of a past: the newest summary within it, and every item after what that covers.

A summary says what all of the past up to and with one item comes to, so it belongs to that place in the log and not to
who made it: each branch that goes through the place can use it, a branch that left before cannot. Nothing that has not
been deleted is ever outside both: the window begins where the summary ends, however far that is behind.
"""

from itertools import groupby
from operator import itemgetter

from sqlalchemy import (
    Connection,
    and_,
    bindparam,
    delete,
    func,
    insert,
    null,
    or_,
    select,
)

from serve_app.conversation.fence import keep_log
from serve_app.conversation.items import Point
from serve_app.storage.schema import items, logs, prompt_texts, summaries
from serve_app.types.conversation import KeepSummary, PastItem, Summary, Window

# Statements of every turn are built once: building costs as much as SQLite takes to run them.
_COVERED = (
    select(func.max(summaries.c.seq))
    .where(summaries.c.log_id == bindparam("log"), summaries.c.seq <= bindparam("last_seq"))
    .scalar_subquery()
)
_NEWEST = (
    select(
        items.c.seq,
        items.c.body,
        prompt_texts.c.text.label("prompt_text"),
        logs.c.parent_id,
        logs.c.parent_seq,
        _COVERED.label("covered"),
    )
    .select_from(logs)
    .outerjoin(
        items,
        and_(
            items.c.log_id == logs.c.id,
            items.c.seq <= bindparam("last_seq"),
            items.c.seq > func.coalesce(_COVERED, 0),
            items.c.body.is_not(null()),
        ),
    )
    .outerjoin(prompt_texts, and_(prompt_texts.c.log_id == items.c.log_id, prompt_texts.c.item_id == items.c.item_id))
    .where(logs.c.id == bindparam("log"))
    .order_by(items.c.seq.desc())
    .limit(bindparam("max_items"))
)
_NEWEST_SUMMARY = (
    select(summaries, items.c.item_id, logs.c.parent_id, logs.c.parent_seq)
    .select_from(logs)
    .outerjoin(summaries, and_(summaries.c.log_id == logs.c.id, summaries.c.seq <= bindparam("last_seq")))
    .outerjoin(items, and_(items.c.log_id == summaries.c.log_id, items.c.seq == summaries.c.seq))
    .where(logs.c.id == bindparam("log"))
    .order_by(summaries.c.seq.desc())
    .limit(1)
)


def read_window(connection: Connection, end: Point | None, max_items: int) -> Window:
    """The past up to and with `end`, back through the parents of its log as far as a summary reaches.

    One query for each log that is needed, and one for the summary. A parent that has been deleted ends the past there.
    """
    newest_first: list[PastItem] = []
    while end is not None and len(newest_first) <= max_items:
        wanted = max_items + 1 - len(newest_first)
        rows = connection.execute(_NEWEST, {"log": end.log_id, "last_seq": end.seq, "max_items": wanted}).all()
        newest_first += [PastItem(end.log_id, row.seq, row.body, row.prompt_text) for row in rows if row.body]
        if rows and rows[0].covered is not None:
            break
        end = Point(rows[0].parent_id, rows[0].parent_seq) if rows and rows[0].parent_id else None
    kept = newest_first[:max_items]
    return Window(tuple(reversed(kept)), _find_summary(connection, end), is_cut=len(newest_first) > max_items)


def _find_summary(connection: Connection, end: Point | None) -> Summary | None:
    while end is not None:
        row = connection.execute(_NEWEST_SUMMARY, {"log": end.log_id, "last_seq": end.seq}).one_or_none()
        if row is not None and row.seq is not None:
            return Summary(row.log_id, row.seq, row.item_id, row.text, row.tokens, row.model, row.created_at)
        end = Point(row.parent_id, row.parent_seq) if row is not None and row.parent_id else None
    return None


def add_summary(connection: Connection, kept: KeepSummary) -> bool:
    """False, and nothing is written, if one reaches as far already, or what went into it has been deleted.

    `IntegrityError` if another process writes one for the same place at the same moment.
    """
    summary = kept.summary
    if not keep_log(connection, summary.log_id) or not _is_still_so(connection, kept):
        return False
    newest = connection.scalar(select(func.max(summaries.c.seq)).where(summaries.c.log_id == summary.log_id))
    if newest is not None and newest >= summary.seq:
        return False
    connection.execute(
        insert(summaries).values(
            log_id=summary.log_id,
            seq=summary.seq,
            text=summary.text,
            tokens=summary.tokens,
            model=summary.model,
            created_at=summary.created_at,
        )
    )
    return True


def _is_still_so(connection: Connection, kept: KeepSummary) -> bool:
    # The rows are locked: who deletes one of them waits, and then finds the new summary. Items first, as `delete_item`.
    for log_id, group in groupby(kept.folded, key=itemgetter(0)):
        seqs = [seq for _, seq in group]
        there = select(items.c.seq).where(items.c.log_id == log_id, items.c.seq.in_(seqs), items.c.body.is_not(null()))
        if len(connection.scalars(there.with_for_update(read=True)).all()) != len(seqs):
            return False
    if before := kept.before:
        query = select(summaries.c.seq).where(summaries.c.log_id == before.log_id, summaries.c.seq == before.seq)
        return connection.scalar(query.with_for_update(read=True)) is not None
    return True


def add_prompt_texts(connection: Connection, log_id: str, texts: dict[str, str]) -> None:
    if texts:
        rows = [{"log_id": log_id, "item_id": item_id, "text": text} for item_id, text in texts.items()]
        connection.execute(insert(prompt_texts), rows)


def forget(connection: Connection, place: Point, item_id: str) -> None:
    """Delete what was made of an item: in its log, and in every branch that goes on from it."""
    log_id, seq = place.log_id, place.seq
    connection.execute(delete(prompt_texts).where(prompt_texts.c.log_id == log_id, prompt_texts.c.item_id == item_id))
    branches = select(logs.c.id).where(logs.c.parent_id == log_id, logs.c.parent_seq >= seq).cte(recursive=True)
    branches = branches.union_all(select(logs.c.id).where(logs.c.parent_id == branches.c.id))
    covers_it = and_(summaries.c.log_id == log_id, summaries.c.seq >= seq)
    covering = delete(summaries).where(or_(covers_it, summaries.c.log_id.in_(select(branches.c.id))))
    # One that was added to what is deleted here, while that was waited for, is seen by the next statement only.
    while connection.execute(covering).rowcount > 0:
        pass
