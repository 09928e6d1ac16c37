"""The processes that answer: each says every few seconds that it lives, so that what it left behind is found soon.

A heartbeat is written with the database's clock and compared with the database's clock, so that the machines' own may
differ as they like. What counts as dead may live: it may have been stopped, or cut off from the database. That costs
the answers that it was giving, and never more: whoever closes a turn first has closed it.
"""

from sqlalchemy import delete, func, insert, select, update

from serve_app.storage.clock import database_time
from serve_app.storage.database import Database
from serve_app.storage.schema import runners

HEARTBEAT_EVERY_S = 2.0
RUNNER_TIMEOUT_S = 10.0
"""Five heartbeats missed: longer than a garbage collection or a busy database holds one up."""

_FORGET_AFTER_S = 86_400


def beat(database: Database, runner_id: str) -> None:
    """Say that this process lives."""
    with database.write() as connection:
        beaten = connection.execute(
            update(runners).where(runners.c.id == runner_id).values(heartbeat_at=database_time())
        )
        if beaten.rowcount == 0:
            connection.execute(delete(runners).where(runners.c.heartbeat_at < database_time() - _FORGET_AFTER_S))
            connection.execute(insert(runners).values(id=runner_id, heartbeat_at=database_time()))


def leave(database: Database, runner_id: str) -> None:
    """Say that this process has ended, once nothing is left that it answers."""
    with database.write() as connection:
        connection.execute(delete(runners).where(runners.c.id == runner_id))


def count_living(database: Database) -> int:
    """How many processes answer now, this one included once it has beaten."""
    living = runners.c.heartbeat_at > database_time() - RUNNER_TIMEOUT_S
    with database.read() as connection:
        return connection.scalar(select(func.count()).where(living)) or 0
