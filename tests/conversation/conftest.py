import pytest

from serve_app.conversation.log import ConversationLog
from serve_app.storage.database import Database


@pytest.fixture
def log(database: Database) -> ConversationLog:
    return ConversationLog(database, max_cached=100)
