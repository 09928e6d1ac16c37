"""The one writer of every vector store: ingestion, and the changes that clients ask for.

One process, because concurrent writers make LanceDB retry and can double rows. More replicas would be more writers:
keep it at one. Ingestion has one thread, the changes another, maintenance a third, and moves to another encoder and
backups have theirs: a deletion waits neither behind a long batch nor behind minutes of compaction or copying.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NoReturn

from deployments.replica import Replica
from deployments.threads import use_all_cores
from serve_app.backup.worker import BackupWorker
from serve_app.config import AppConfig
from serve_app.knowledge.encode import load_encoders
from serve_app.knowledge.gauges import measure
from serve_app.knowledge.index import IndexWriter
from serve_app.knowledge.ingest import Ingestor
from serve_app.knowledge.reembed import Reembedder
from serve_app.knowledge.versions import Versions
from serve_app.storage.database import open_database
from serve_app.storage.files import FileStore
from serve_app.types.knowledge import Optimization, StoreFileRef, StoreVersionRef, TableState
from serve_app.vitals import Releasable

logger = logging.getLogger(__name__)

_MEASURE_EVERY_S = 15
"""Ray shows a gauge for two of its report intervals after it was set: for 20 s, by default."""

_NICENESS = 19
"""The highest there is: about a seventieth of a busy core beside a process of niceness 0."""

_LOOK_EVERY_S = 1.0
_ENFORCE_EVERY_S = 600


class Indexer(Replica):
    def __init__(self, config: AppConfig) -> None:
        # A chat that is being answered on the same cores goes first.
        os.nice(_NICENESS)
        use_all_cores()
        super().__init__()
        self._database = open_database(config.storage.resolved_database_url)
        encoders = load_encoders(config.encoders, "THROUGHPUT")
        file_store = FileStore(self._database, config.storage.files_folder)
        self._index = IndexWriter(config.storage.vectors_folder, self.metrics)
        self._versions = Versions(self._database, self._index, config.retention)
        self._ingestor = Ingestor(
            self._database, file_store, encoders, self._index, self._versions, config.ingestion, self.metrics
        )
        self._reembedder = Reembedder(
            self._database, file_store, encoders, self._index, self._versions, config.ingestion
        )
        self._backups = BackupWorker(self._database, config)
        # First of all: a process that was replaced may live a little longer, and must not finish what it has begun.
        self._ingestor.take_over()
        self._reembedder.take_over()
        self._backups.take_over()
        self._versions.undo_unrecorded()
        self._poll_interval_s = config.ingestion.poll_interval_s
        self._ingestion = ThreadPoolExecutor(1, thread_name_prefix="ingest")
        self._changes = ThreadPoolExecutor(1, thread_name_prefix="change")
        self._maintenance = ThreadPoolExecutor(1, thread_name_prefix="maintain")
        self._moving = ThreadPoolExecutor(1, thread_name_prefix="reembed")
        self._copying = ThreadPoolExecutor(1, thread_name_prefix="backup")
        self._work = {thread: asyncio.Event() for thread in (self._ingestion, self._moving, self._copying)}
        self._loops: list[asyncio.Task[None]] = []

    async def wake(self) -> None:
        for work in self._work.values():
            work.set()

    async def update_attributes(self, ref: StoreFileRef) -> None:
        await self._change(lambda: self._versions.update_attributes(ref))

    async def remove_file(self, ref: StoreFileRef) -> None:
        await self._change(lambda: self._versions.remove_file(ref))

    async def roll_back(self, ref: StoreVersionRef) -> int:
        return await asyncio.get_running_loop().run_in_executor(self._changes, self._versions.roll_back, ref)

    async def drop_store(self, store_id: str) -> None:
        await self._change(lambda: self._index.drop(store_id))

    async def optimize(self, store_id: str) -> Optimization:
        return await asyncio.get_running_loop().run_in_executor(self._maintenance, self._versions.optimize, store_id)

    async def describe(self, store_id: str) -> TableState:
        return await asyncio.to_thread(lambda: self._index.describe(self._versions.table(store_id)))

    async def ready(self) -> None:
        """Returns if the loops of all its threads are alive; raises what ended one otherwise."""
        await self.check_health()

    def caches(self) -> Sequence[Releasable]:
        return (self._index, *super().caches())

    async def check_health(self) -> None:
        # Ray calls this soon after the constructor, and then regularly, on the replica's event loop.
        await super().check_health()
        if not self._loops:
            self._loops = [
                asyncio.create_task(self._work_off(self._ingestion, self._ingestor.run_once)),
                asyncio.create_task(self._work_off(self._moving, self._reembedder.run_once)),
                asyncio.create_task(self._work_off(self._copying, self._backups.run_once)),
                asyncio.create_task(self._maintain()),
                asyncio.create_task(self._enforce_retention()),
                asyncio.create_task(self._measure()),
            ]
        for loop in self._loops:
            if loop.done():
                loop.result()

    async def _work_off(self, thread: ThreadPoolExecutor, run_once: Callable[[], int]) -> None:
        """Work through what the database holds, for as long as the replica lives."""
        loop = asyncio.get_running_loop()
        while True:
            self._work[thread].clear()
            while await loop.run_in_executor(thread, run_once):
                pass
            try:
                await asyncio.wait_for(self._work[thread].wait(), self._poll_interval_s)
            except TimeoutError:
                continue

    async def _enforce_retention(self) -> NoReturn:
        """Of what only the time makes too old: each commit looks after the rest. No change waits for all stores."""
        while True:
            # Tables of stores that the database does not know are left alone: it may be the wrong database.
            store_ids = await asyncio.to_thread(self._versions.store_ids)
            tables = await asyncio.to_thread(self._index.tables)
            for store_id in store_ids:
                await self._change(partial(self._versions.enforce_retention, store_id, tables.get(store_id, set())))
            await asyncio.sleep(_ENFORCE_EVERY_S)

    async def _measure(self) -> NoReturn:
        while True:
            try:
                await asyncio.to_thread(measure, self._database, self._index, self.metrics)
            except Exception:
                # What is only for show must not stop the ingestion.
                logger.exception("the gauges keep their last values")
            await asyncio.sleep(_MEASURE_EVERY_S)

    async def _maintain(self) -> None:
        """Keep the stores fast and small, for as long as the replica lives."""
        loop = asyncio.get_running_loop()
        while True:
            if not await loop.run_in_executor(self._maintenance, self._index.maintain_next):
                await asyncio.sleep(_LOOK_EVERY_S)

    async def _change(self, work: Callable[[], None]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._changes, work)
