"""Conversations that survive whatever runs them: a fenced, append-only log of items, and the responses in it.

Read `fence.py` first (why nothing acknowledged is lost), then `log.py` (what can be done with a log). `items.py` and
`responses.py` are their SQL, `memory.py` the window and its summaries, `checks.py` what both databases can store.
"""
