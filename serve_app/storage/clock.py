"""The database's clock: the one that all processes share, whatever the clocks of their machines say."""

# What SQLAlchemy passes to a compiler has no narrower type.
from typing import Any

from sqlalchemy import Float
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import GenericFunction


class database_time(GenericFunction[float]):
    """Unix seconds at the moment at which the statement runs, to a millisecond or better."""

    type = Float()
    inherit_cache = True


@compiles(database_time, "postgresql")
def _on_postgresql(_element: database_time, _compiler: Any, **_options: Any) -> str:
    # Not now(), which stands still within a transaction.
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION)"


@compiles(database_time, "sqlite")
def _on_sqlite(_element: database_time, _compiler: Any, **_options: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"
