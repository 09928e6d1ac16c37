"""Search of the vector stores. Any number of replicas: each sees the indexer's commits as they are made."""

from serve_app.config import AppConfig
from serve_app.knowledge.search import IndexReader
from serve_app.types import Passage, SearchQuery


class Retriever:
    def __init__(self, config: AppConfig) -> None:
        self._index = IndexReader(config.storage.vectors_folder)

    async def search(self, query: SearchQuery) -> tuple[Passage, ...]:
        return await self._index.search(query)

    async def ready(self) -> None:
        """Returns if the folder of the vector stores can be read; raises otherwise."""
        await self._index.ready()
