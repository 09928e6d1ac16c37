"""Tables on the disk. LanceDB does not wait until what it has written is there, so a loss of power may leave its newest
files empty, or cut off. What a version of a store consists of is synced before that version is recorded (`sync`); what
came later can be taken back (`drop_torn`).
"""

import json
import logging
import os
from collections.abc import Collection
from pathlib import Path

from serve_app.knowledge.table_files import list_files
from serve_app.storage.files import sync_path

logger = logging.getLogger(__name__)

_LAST = 2**64 - 1
"""The name of a manifest is this number less its version."""
_ENDS = {".manifest": b"LANC", ".lance": b"LANC", ".idx": b"LANC", ".arrow": b"ARROW1"}
"""Of files in Lance's own format (https://lance.org/format/file/) and in Arrow's."""


def sync(table: Path, files: Collection[Path]) -> None:
    """Wait until the disk has these files, whose paths are relative to the table's folder."""
    paths = {table / file for file in files}
    folders = {folder for path in paths for folder in path.parents if folder.is_relative_to(table)}
    # Each name is durable only when the folder that holds it is.
    for path in (*paths, *folders, table.parent):
        sync_path(path)


def drop_torn(table: Path, recorded: int) -> bool:
    """Make the newest whole version of a table its newest, if that comes after the `recorded` one or is it.

    Those after it are of maintenance, which does them again, or were never recorded. False if there is no whole one:
    then the table is left as it is.
    """
    manifests = {_LAST - int(name.removesuffix(".manifest")): table / "_versions" / name for name in _manifests(table)}
    later = sorted((version for version in manifests if version > recorded), reverse=True)
    torn = [version for version in later if not _is_whole(manifests[version])]
    # Nothing can be read from these; without them the files of the others can be asked for.
    _drop(table, torn, manifests)
    torn = []
    for version in (version for version in later if manifests[version].exists()):
        if all(_is_whole(table / path) for path in list_files(table, [version])):
            break
        torn.append(version)
    else:
        if recorded not in manifests:
            return False
    _drop(table, torn, manifests)
    for tag in table.glob("_refs/tags/*.json"):
        if not _is_json(tag):
            logger.warning("table %s: its tag %s is torn, and was not recorded", table.stem, tag.stem)
            tag.unlink()
    return True


def _manifests(table: Path) -> list[str]:
    return [name for name in os.listdir(table / "_versions") if name.endswith(".manifest")]


def _drop(table: Path, versions: Collection[int], manifests: dict[int, Path]) -> None:
    """The newest first: if this is killed, what is left is as it was."""
    for version in versions:
        logger.warning("table %s: its version %d is torn, and dropped", table.stem, version)
        manifests[version].unlink()


def _is_whole(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            size, end = file.seek(0, os.SEEK_END), _ENDS.get(path.suffix, b"")
            file.seek(max(size - len(end), 0))
            return size > 0 and file.read() == end
    except FileNotFoundError:
        return False


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return False
    return True
