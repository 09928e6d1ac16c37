"""A process that appends until it is killed: `python -m tests.conversation.writer URL CONVERSATION_ID`.

It prints the number of each append once that has been acknowledged.
"""

import itertools
import os
import sys

from serve_app.conversation.log import ConversationLog
from serve_app.storage.database import open_database
from serve_app.types import AppendItems
from tests.conversation.messages import message

if __name__ == "__main__":
    url, conversation_id = sys.argv[1:]
    log = ConversationLog(open_database(url), max_cached=10)
    for number in itertools.count():
        log.append_items(AppendItems(conversation_id, (message(str(number)), message("+")), str(number)))
        os.write(1, f"{number}\n".encode())
