"""The files of which a store's table consists, for backups: LanceDB writes each once and never changes it."""

from collections.abc import Collection, Mapping
from pathlib import Path

import lance
import pyarrow as pa
import pyarrow.compute as pc

from serve_app.errors import InternalError


class VersionGone(Exception):
    """The table, or a version of it, was cleaned up or dropped meanwhile."""


def current_version(table: Path) -> int | None:
    """The newest version; None if there is no table."""
    try:
        return int(lance.dataset(str(table)).version)
    except ValueError:
        return None


def list_files(table: Path, versions: Collection[int]) -> list[Path]:
    """All that these versions consist of, relative to the table's folder: manifests, data, deletions, indices.

    Raises `VersionGone`.
    """
    try:
        tracked = lance.dataset(str(table)).tracked_files(min_version=min(versions)).read_all()
    except (ValueError, OSError, RuntimeError) as error:
        raise VersionGone(str(error)) from error
    ours = tracked.filter(pc.is_in(tracked["version"], value_set=pa.array(list(versions), pa.int64())))
    if set(versions) - set(ours["version"].to_pylist()):
        raise VersionGone(f"{table.name} has not all of the versions {sorted(versions)} any more")
    return [Path(path) for path in sorted(set(ours["path"].to_pylist()))]


def count_rows(table: Path, version: int) -> int:
    """Raises `VersionGone`."""
    try:
        return int(lance.dataset(str(table), version=version).count_rows())
    except (ValueError, OSError, RuntimeError) as error:
        raise VersionGone(str(error)) from error


def prepare_restored(table: Path, version: int, rows: int, tags: Mapping[str, int]) -> None:
    """Make sure that a table put together from its files is the one that was backed up, and tag its versions.

    `tags` are versions by tag. Raises `InternalError` if it does not open, or holds something else.
    """
    try:
        restored = lance.dataset(str(table))
        found = (restored.version, restored.count_rows())
        for tag, tagged in tags.items():
            restored.tags.create(tag, tagged)
    except (ValueError, OSError, RuntimeError) as error:
        raise InternalError(f"The restored table {table.name} cannot be opened: {error}") from error
    if found != (version, rows):
        raise InternalError(
            f"The restored table {table.name} has version {found[0]} with {found[1]} passages,"
            f" and the backup says version {version} with {rows}"
        )
