"""Search of the vector stores. Any number of replicas: each sees the indexer's commits as they are made."""

from collections.abc import Sequence

from deployments.replica import Replica
from serve_app.config import AppConfig
from serve_app.knowledge.search import IndexReader
from serve_app.types.knowledge import Passage, SearchQuery
from serve_app.vitals import Releasable


class Retriever(Replica):
    def __init__(self, config: AppConfig) -> None:
        super().__init__()
        self._index = IndexReader(config.storage.vectors_folder)

    async def search(self, query: SearchQuery) -> tuple[Passage, ...]:
        return await self._index.search(query)

    def caches(self) -> Sequence[Releasable]:
        return (self._index, *super().caches())

    async def ready(self) -> None:
        """Returns if the folder of the vector stores can be read; raises otherwise."""
        await self._index.ready()
