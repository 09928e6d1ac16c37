"""Each model's settings with their history, in the database; and the newest of them in the memory of every gateway."""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection, Row, exists, insert, select
from sqlalchemy.exc import IntegrityError

from serve_app.errors import InvalidRequest, NotFound
from serve_app.generation.settings import Applied, Profile, Settings, UserConfig, adapt
from serve_app.storage.database import Database
from serve_app.storage.schema import model_settings
from serve_app.types import Json, now_s

logger = logging.getLogger(__name__)
T = TypeVar("T")

_ATTEMPTS = 20

YAML = "serve deploy"
"""Who changed settings, where it was the YAML."""


@dataclass(frozen=True, slots=True)
class Revision:
    """The settings of a model from one change to the next."""

    model_id: str
    number: int
    settings: Settings
    author: str
    created_at: int

    def to_json(self) -> Json:
        return {
            "object": "model.settings",
            "model": self.model_id,
            "revision": self.number,
            "settings": self.settings.model_dump(mode="json"),
            "author": self.author,
            "created_at": self.created_at,
        }


class SettingsLog:
    """Blocks: call it in threads. Every change is a new revision; none is ever changed."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def newest(self) -> dict[str, Revision]:
        """By model id."""
        later = model_settings.alias()
        is_newest = ~exists().where(
            later.c.model_id == model_settings.c.model_id, later.c.revision > model_settings.c.revision
        )
        with self._database.read() as connection:
            return {row.model_id: _read(row) for row in connection.execute(select(model_settings).where(is_newest))}

    def history(self, model_id: str, before: int | None, limit: int) -> list[Revision]:
        """Newest first: those before a revision, or the newest of all."""
        query = select(model_settings).where(model_settings.c.model_id == model_id)
        if before is not None:
            query = query.where(model_settings.c.revision < before)
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(model_settings.c.revision.desc()).limit(limit)).all()
        return [_read(row) for row in rows]

    def declare(self, model_id: str, settings: Settings) -> None:
        """What the YAML says. Where it differs from what the YAML said last, it replaces all settings."""

        def write(connection: Connection) -> None:
            query = select(model_settings.c.settings).where(
                model_settings.c.model_id == model_id, model_settings.c.author == YAML
            )
            declared = connection.scalar(query.order_by(model_settings.c.revision.desc()).limit(1))
            if (declared or {}) != settings.said():
                _append(connection, model_id, settings, YAML)

        self._write(write)

    def change(self, model_id: str, patch: Json, author: str) -> Revision:
        """Replace what the patch names; null takes a setting back. Raises pydantic's `ValidationError`."""

        def write(connection: Connection) -> Revision:
            current = _newest(connection, model_id)
            said = current.settings.said() if current else {}
            return _append(connection, model_id, Settings.model_validate({**said, **patch}), author)

        return self._write(write)

    def roll_back(self, model_id: str, number: int, author: str) -> Revision:
        """A new revision with the settings of an old one. Raises `NotFound`."""

        def write(connection: Connection) -> Revision:
            query = select(model_settings).where(
                model_settings.c.model_id == model_id, model_settings.c.revision == number
            )
            row = connection.execute(query).one_or_none()
            if row is None:
                raise NotFound(f"The settings of {model_id!r} have no revision {number}", param="revision")
            return _append(connection, model_id, _read(row).settings, author)

        return self._write(write)

    def _write(self, work: Callable[[Connection], T]) -> T:
        for _ in range(_ATTEMPTS - 1):
            try:
                with self._database.write() as connection:
                    return work(connection)
            except IntegrityError:
                continue  # another gateway has just made the same revision
        with self._database.write() as connection:
            return work(connection)


class SettingsInForce:
    """The newest settings in a gateway's memory, so that a request looks them up without a wait.

    `refresh` blocks; all else answers at once.
    """

    def __init__(self, log: SettingsLog, parents: Mapping[str, str] | None = None) -> None:
        """`parents`: by the id of each adapter, that of the model whose settings it has until it has its own."""
        self.log = log
        self._parents = parents or {}
        self.profiles: dict[str, Profile] = UserConfig().all_profiles
        self._newest = log.newest()
        self._reading = threading.Lock()

    def refresh(self) -> None:
        # One at a time: a slow look must not bring back what a later one has replaced.
        with self._reading:
            self._newest = self.log.newest()

    def declare(self, config: UserConfig) -> None:
        """Take what `serve_config.yaml` says now. Blocks."""
        for model_id, settings in config.settings.items():
            self.log.declare(model_id, settings)
        self.profiles = config.all_profiles
        self.refresh()
        self._warn()

    def of(self, model_id: str) -> Revision:
        own = self._newest.get(model_id) or self._newest.get(self._parents.get(model_id, ""))
        return own or Revision(model_id, 0, Settings(), YAML, 0)

    def apply(
        self, model_id: str, profile: str | None, max_tokens: int | None, count_prompt_tokens: Callable[[], int]
    ) -> Applied:
        """What a request is answered with, which may name a profile and the most tokens that it wants.

        The prompt is counted only for a profile. Raises `InvalidRequest` for a profile that is not there.
        """
        revision = self.of(model_id)
        if profile is not None:
            self.require_profile(profile)
        chosen = profile or revision.settings.profile
        # What the settings name may have left the YAML since: no request is to fail for that.
        if chosen is None or chosen not in self.profiles:
            return Applied(revision.settings, revision.number, None, ())
        settings, rules = adapt(revision.settings, self.profiles[chosen], count_prompt_tokens(), max_tokens)
        return Applied(settings, revision.number, chosen, rules)

    def require_profile(self, name: str) -> None:
        """Raises `InvalidRequest` if it is not there."""
        if name not in self.profiles:
            known = ", ".join(map(repr, sorted(self.profiles)))
            raise InvalidRequest(f"There is no profile {name!r}, only {known}", param="profile")

    def _warn(self) -> None:
        for revision in self._newest.values():
            if revision.settings.profile not in (None, *self.profiles):
                logger.warning("model %s: its profile %r is not there", revision.model_id, revision.settings.profile)


def _append(connection: Connection, model_id: str, settings: Settings, author: str) -> Revision:
    current = _newest(connection, model_id)
    revision = Revision(model_id, current.number + 1 if current else 1, settings, author, now_s())
    connection.execute(
        insert(model_settings).values(
            model_id=model_id,
            revision=revision.number,
            settings=settings.said(),
            author=author,
            created_at=revision.created_at,
        )
    )
    return revision


def _newest(connection: Connection, model_id: str) -> Revision | None:
    query = select(model_settings).where(model_settings.c.model_id == model_id)
    row = connection.execute(query.order_by(model_settings.c.revision.desc()).limit(1)).one_or_none()
    return _read(row) if row else None


# SQLAlchemy does not know the columns of a table's row as types.
def _read(row: Row[Any]) -> Revision:
    return Revision(row.model_id, row.revision, Settings.model_validate(row.settings), row.author, row.created_at)
