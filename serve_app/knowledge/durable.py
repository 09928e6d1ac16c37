"""Tables on the disk. LanceDB does not wait until what it has written is there, so a loss of power may leave its newest
files empty, or cut off. What a version of a store consists of is synced before that version is recorded (`sync`); what
came later can be taken back (`drop_torn`).
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path

from serve_app.knowledge.table_files import list_files
from serve_app.storage.files import sync_path

logger = logging.getLogger(__name__)

_NEWEST = 2**64 - 1
"""The name of a manifest is this number less its version."""
_MAGIC = b"LANC"
"""With it ends what is in Lance's own format: https://lance.org/format/file/."""
_WITH_MAGIC = {".manifest", ".lance", ".idx"}


def sync(table: Path, since_ns: int) -> None:
    """Wait until the disk has everything in the table's folder that has changed since that time of the clock."""
    for folder, _, names in os.walk(table):
        for path in (*(os.path.join(folder, name) for name in names), folder):
            # Temporary files come and go.
            with suppress(FileNotFoundError):
                if os.stat(path).st_ctime_ns >= since_ns:
                    sync_path(path)


def drop_torn(table: Path, recorded: int) -> None:
    """If a version of the table after the `recorded` one has a torn file, drop that version and all that came after it.

    They are of maintenance, which does them again, or nobody was told of them.
    """
    manifests = {_NEWEST - int(path.stem): path for path in table.glob("_versions/*.manifest")}
    later = sorted(version for version in manifests if version > recorded)
    # First the manifests themselves: the other files can be asked for once the newest one is whole.
    readable = _keep_whole(table, later, manifests, lambda version: [manifests[version]])
    _keep_whole(table, readable, manifests, lambda version: [table / path for path in list_files(table, [version])])
    if not any(path.exists() for path in manifests.values()):
        shutil.rmtree(table)
    for tag in table.glob("_refs/tags/*.json"):
        if not _is_json(tag):
            logger.warning("table %s: its tag %s is torn, and was recorded nowhere", table.stem, tag.stem)
            tag.unlink()


def _keep_whole(
    table: Path, versions: Sequence[int], manifests: dict[int, Path], files_of: Callable[[int], Collection[Path]]
) -> Sequence[int]:
    for place, version in enumerate(versions):
        if not all(map(_is_whole, files_of(version))):
            logger.warning("table %s: version %d is torn, and dropped with what came after it", table.stem, version)
            for each in reversed(versions[place:]):
                manifests[each].unlink()
            return versions[:place]
    return versions


def _is_whole(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - len(_MAGIC), 0))
            end = file.read()
    except FileNotFoundError:
        return False
    return size > 0 and (path.suffix not in _WITH_MAGIC or end == _MAGIC)


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return False
    return True
