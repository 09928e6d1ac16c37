"""How a database comes from any older schema to that of `schema.py`: one file a step, in `versions/`.

A new step is written by hand: change `schema.py`, add `versions/NNNN_what.py` (its `down_revision` is the step before
it), and set `NEWEST`. `tests/storage/test_migrations.py` fails with the difference until the two agree.
"""

NEWEST = "0001"
"""The revision that `schema.py` describes. Here so that a current database is recognised without importing Alembic."""
