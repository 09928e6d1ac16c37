"""The one writer of every vector store: ingestion, and the changes that clients ask for.

One process, because concurrent writers make LanceDB retry and can double rows. More replicas would be more writers:
keep it at one. Ingestion has one thread, the changes another, and maintenance a third: a deletion waits neither behind
a long batch nor behind minutes of compaction.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from serve_app.config import AppConfig
from serve_app.knowledge.encode import load_encoder
from serve_app.knowledge.index import IndexWriter
from serve_app.knowledge.ingest import Ingestor
from serve_app.storage.database import open_database
from serve_app.storage.files import FileStore
from serve_app.types import AttributeChange, Optimization, StoreFileRef

_LOOK_EVERY_S = 1.0


class Indexer:
    def __init__(self, config: AppConfig) -> None:
        database = open_database(config.storage.resolved_database_url)
        encoder = load_encoder(config.encoder)
        self._index = IndexWriter(config.storage.vectors_folder, encoder.dimensions)
        self._ingestor = Ingestor(
            database, FileStore(database, config.storage.files_folder), encoder, self._index, config.ingestion
        )
        self._poll_interval_s = config.ingestion.poll_interval_s
        self._ingestion = ThreadPoolExecutor(1, thread_name_prefix="ingest")
        self._changes = ThreadPoolExecutor(1, thread_name_prefix="change")
        self._maintenance = ThreadPoolExecutor(1, thread_name_prefix="maintain")
        self._work = asyncio.Event()
        self._loops: list[asyncio.Task[None]] = []

    async def wake(self) -> None:
        self._work.set()

    async def update_attributes(self, change: AttributeChange) -> None:
        await self._change(lambda: self._index.update_attributes(change))

    async def remove_file(self, ref: StoreFileRef) -> None:
        await self._change(lambda: self._index.remove_file(ref.store_id, ref.file_id))

    async def drop_store(self, store_id: str) -> None:
        await self._change(lambda: self._index.drop(store_id))

    async def optimize(self, store_id: str) -> Optimization:
        work = partial(self._index.optimize, store_id)
        return await asyncio.get_running_loop().run_in_executor(self._maintenance, work)

    async def ready(self) -> None:
        """Returns if ingestion and maintenance are alive; raises what ended them otherwise."""
        await self.check_health()

    async def check_health(self) -> None:
        # Ray calls this soon after the constructor, and then regularly, on the replica's event loop.
        if not self._loops:
            self._loops = [asyncio.create_task(self._ingest()), asyncio.create_task(self._maintain())]
        for loop in self._loops:
            if loop.done():
                loop.result()

    async def _ingest(self) -> None:
        """Work through what the database holds, for as long as the replica lives."""
        loop = asyncio.get_running_loop()
        while True:
            self._work.clear()
            while await loop.run_in_executor(self._ingestion, self._ingestor.run_once):
                pass
            try:
                await asyncio.wait_for(self._work.wait(), self._poll_interval_s)
            except TimeoutError:
                continue

    async def _maintain(self) -> None:
        """Keep the stores fast and small, for as long as the replica lives."""
        loop = asyncio.get_running_loop()
        while True:
            if not await loop.run_in_executor(self._maintenance, self._index.maintain_next):
                await asyncio.sleep(_LOOK_EVERY_S)

    async def _change(self, work: Callable[[], None]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._changes, work)
