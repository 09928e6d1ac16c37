"""Conversations that survive whatever runs them: a fenced, append-only log of items, and the responses in it.

Read `fence.py` first (why nothing acknowledged is lost), then `log.py` (what can be done with a log) and `turns.py`
(how a question is written once, and its answer after it). `past.py` says what a branch shares with others;
`conversations.py`, `items.py`, `responses.py`, `forks.py` and `search.py` are their SQL, `memory.py` the window and its
summaries, `checks.py` what both databases can store. `transfer.py` brings a whole conversation in. `runners.py` says
which processes live, `jobs.py` holds the background responses, `facts.py` and `insights/` say what a conversation is
about.
"""
