"""What Rayconteur does: pure Python, without Ray and without vLLM. Where each part runs is in `deployments/`.

In the order in which it is best read; each file knows only those above it:

errors.py       what can go wrong, with its HTTP status
types/          the plain values that cross processes
config.py       `AppConfig`, the `args:` of serve_config.yaml
models.py       where a model lies on this machine
metrics.py      what an operator can watch
counts.py       counts and times of a process, in logarithmic buckets
vitals.py       what a process takes of the memory, and how it lets go of it
admission/      who may use a model now, who waits, and who is to come back later
parts.py        the roles that the request path needs, as Protocols
lfu_cache.py    values in memory, of which those that are asked for most stay
events.py       what happens in a turn, and the same again from what is stored
storage/        the SQL database and the uploaded files
knowledge/      parse → split → encode → index → search, and the jobs of the indexer
conversation/   the fenced, append-only log: what is acknowledged is never lost or doubled
backup/         snapshots of all of the above while it goes on, and back
generation/     the prompt, the settings in force, the answer and how it goes on where a replica died, its citations,
                answers that were given before
memory.py       what of a conversation the model sees, and how the rest is folded
search.py       from a question in its conversation to passages
chat.py         one question and its answer: read `reply` first if you read only one thing
background.py   the same without a client: durable jobs, their journals, and who reads them
api/            OpenAI's wire format over all of it; `create_app` gives an app that tests run without Ray
cli/            `rayconteur`, a client of that API; `serve` starts Ray as a command
"""
