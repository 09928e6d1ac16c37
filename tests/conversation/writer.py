"""A process that appends: `python -m tests.conversation.writer URL CONVERSATION_ID [NAME]`.

It prints the number of each append once that has been acknowledged. Without a name it goes on until it is killed. With
one it appends once for each line that it is sent, and in the end prints how often it was fenced.
"""

import itertools
import os
import sys

from serve_app.conversation.log import ConversationLog
from serve_app.storage.database import open_database
from serve_app.types.conversation import AppendItems
from tests.conversation.messages import message

if __name__ == "__main__":
    url, conversation_id, *name = sys.argv[1:]
    log = ConversationLog(open_database(url), max_cached=10)
    for number, _ in enumerate(sys.stdin if name else itertools.count()):
        text = ".".join([*name, str(number)])
        log.append_items(AppendItems(conversation_id, (message(text), message("+")), text))
        os.write(1, f"{number}\n".encode())
    os.write(1, f"fenced {log.fenced_writes}\n".encode())
