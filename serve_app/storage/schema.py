"""The SQL schema, one for SQLite and PostgreSQL. Changes go through a migration in `migrations/`.

Times are Unix seconds; JSON columns hold OpenAI's objects.
"""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData()

# A log of items. A conversation is one (`conv_…`); a stored response outside any conversation is one too (its id is the
# response's), whose parent is the log of the response before it; and so is what forks still need of a deleted
# conversation (`past_…`). A branch shares its past and copies nothing.
logs = Table(
    "logs",
    metadata,
    Column("id", String(80), primary_key=True),
    Column("is_conversation", Boolean, nullable=False),
    Column("metadata", JSON, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("epoch", Integer, nullable=False),  # the fence: who takes a log over raises it
    Column("head", Integer, nullable=False),  # seq of the newest item; parent_seq or 0 if there is none
    Column("parent_id", String(80)),
    Column("parent_seq", Integer),  # the past ends with this item of the parent
    Column("last_active_at", BigInteger, nullable=False),  # when something was last added or changed
    Column("expires_after_s", BigInteger),  # of inactivity; null: as the configuration says
    Index("logs_by_parent", "parent_id"),
    Index("logs_by_creation", "created_at", "id"),
)

items = Table(
    "items",
    metadata,
    Column("log_id", String(80), primary_key=True),
    Column("seq", Integer, primary_key=True),  # without gaps from 1, or from the parent_seq on
    Column("item_id", String(80), nullable=False),
    Column("idempotency_key", String(300), nullable=False),  # of the append (255), with its kind and the item's index
    Column("epoch", Integer, nullable=False),  # the fence it was written under
    Column("body", JSON),  # the OpenAI item; null once it has been deleted
    Column("created_at", BigInteger, nullable=False),
    ForeignKeyConstraint(["log_id"], ["logs.id"], ondelete="CASCADE"),
    Index("items_by_id", "log_id", "item_id", unique=True),
    Index("items_by_idempotency_key", "log_id", "idempotency_key", unique=True),
    Index("items_by_time", "created_at"),
)

# What the insights know of a message, so that it is computed once. Whatever is missing is computed again when it is
# needed: backups leave this out, and a row of another encoder or version counts as missing.
message_facts = Table(
    "message_facts",
    metadata,
    Column("log_id", String(80), primary_key=True),
    Column("seq", Integer, primary_key=True),  # the item's
    Column("encoder", String(255), nullable=False),  # model id that made its vector
    Column("version", Integer, nullable=False),  # of the code that made the rest
    Column("vector", LargeBinary, nullable=False),  # float16, little-endian
    Column("body", JSON, nullable=False),
    ForeignKeyConstraint(["log_id", "seq"], ["items.log_id", "items.seq"], onupdate="CASCADE", ondelete="CASCADE"),
)

# What a log comes to up to and with an item, as the model is told it, in every branch that goes through there. The
# newest that lies within a past is that past's. Older ones stay, for branches that leave before the newer.
summaries = Table(
    "summaries",
    metadata,
    Column("log_id", String(80), primary_key=True),
    Column("seq", Integer, primary_key=True),  # the last item that it covers
    Column("text", Text, nullable=False),
    Column("tokens", Integer, nullable=False),
    Column("model", String(255), nullable=False),  # who wrote it
    Column("created_at", BigInteger, nullable=False),
    ForeignKeyConstraint(["log_id", "seq"], ["items.log_id", "items.seq"], onupdate="CASCADE", ondelete="CASCADE"),
)

# What the model read, or wrote, where that is not the item's own text: a question with its sources, an answer with
# their numbers. Later prompts repeat it to the byte, so that the engine finds them in its prefix cache.
prompt_texts = Table(
    "prompt_texts",
    metadata,
    Column("log_id", String(80), primary_key=True),
    Column("item_id", String(80), primary_key=True),
    Column("text", Text, nullable=False),
    ForeignKeyConstraint(
        ["log_id", "item_id"], ["items.log_id", "items.item_id"], onupdate="CASCADE", ondelete="CASCADE"
    ),
)

responses = Table(
    "responses",
    metadata,
    Column("id", String(80), primary_key=True),
    Column("log_id", String(80), nullable=False),
    Column("first_seq", Integer, nullable=False),  # its first input item in the log
    Column("input_count", Integer, nullable=False),
    Column("last_seq", Integer, nullable=False),  # its last item: where the next response continues
    Column("status", String(20), nullable=False),
    Column("body", JSON, nullable=False),
    Column("idempotency_key", String(255)),
    Column("created_at", BigInteger, nullable=False),
    Column("runner_id", String(80)),  # who answers; null for a background response, whose job says it
    Column("recording", JSON),  # what the events of its stream need beside the body, once it has ended
    ForeignKeyConstraint(["log_id"], ["logs.id"], ondelete="CASCADE"),
    Index("responses_by_idempotency_key", "idempotency_key", unique=True),
    Index("responses_by_log", "log_id"),
)

# The processes that answer (gateways), each with when it was last heard of: so a death is known in seconds.
runners = Table(
    "runners",
    metadata,
    Column("id", String(80), primary_key=True),
    Column("heartbeat_at", Float, nullable=False),  # by the database's clock, as all that is compared with it
)

# A background response that has not ended: claimed under a fence, held by a lease.
response_jobs = Table(
    "response_jobs",
    metadata,
    Column("response_id", String(80), primary_key=True),
    Column("request", JSON, nullable=False),  # the checked request, all that answering it needs
    Column("created_at", Float, nullable=False),
    Column("fence", Integer, nullable=False),  # raised by each claim; 0 while it is queued
    Column("lease_until", Float, nullable=False),  # by the database's clock; 0 while unclaimed
    Column("attempts", Integer, nullable=False, server_default="0"),  # claims since something was done
    ForeignKeyConstraint(["response_id"], ["responses.id"], ondelete="CASCADE"),
    Index("response_jobs_by_lease", "lease_until", "created_at"),
)

# What has happened so far in a background response. Readers see nothing that is not here.
response_journal = Table(
    "response_journal",
    metadata,
    Column("response_id", String(80), primary_key=True),
    Column("number", Integer, primary_key=True),  # 1, 2, … without gaps
    Column("events", JSON, nullable=False),
    Column("raw_text", Text, nullable=False),  # what the model wrote meanwhile, its citations' numbers included
    ForeignKeyConstraint(["response_id"], ["response_jobs.response_id"], ondelete="CASCADE"),
)

files = Table(
    "files",
    metadata,
    Column("id", String(80), primary_key=True),
    Column("filename", String(1024), nullable=False),
    Column("media_type", String(100), nullable=False),  # what the content was found to be
    Column("purpose", String(40), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Index("files_by_creation", "created_at", "id"),
)

vector_stores = Table(
    "vector_stores",
    metadata,
    Column("id", String(80), primary_key=True),
    Column("name", String(512)),
    Column("metadata", JSON, nullable=False),
    Column("encoder", String(255), nullable=False),  # model id that made its vectors
    # Of the table's name, after the store's id. Each encoder that the store is moved to has a table of its own.
    Column("table_suffix", String(20), nullable=False, server_default=""),
    Column("chunking_strategy", JSON, nullable=False),  # the default for files added without one
    Column("expires_after", JSON),
    Column("retention", JSON),  # which versions are kept; null: what the configuration says
    Column("created_at", BigInteger, nullable=False),
    Column("last_active_at", BigInteger, nullable=False),
)

# What a store answered and when: one row for each commit that changed what can be found, for as long as it is kept.
# LanceDB's version is tagged `v{version}` as long as the row is there, which keeps its files.
store_versions = Table(
    "store_versions",
    metadata,
    Column("store_id", String(80), primary_key=True),
    Column("version", Integer, primary_key=True),  # 1, 2, … ; gaps are versions that are no longer kept
    Column("table_version", BigInteger, nullable=False),  # LanceDB's
    Column("table_suffix", String(20), nullable=False, server_default=""),  # which table it is in
    Column("encoder", String(255), nullable=False, server_default=""),  # that made its vectors
    Column("created_at", Float, nullable=False),
    Column("files", Integer, nullable=False),  # that were found
    Column("passages", Integer, nullable=False),
    Column("pinned", Boolean, nullable=False),  # kept whatever the retention says
    ForeignKeyConstraint(["store_id"], ["vector_stores.id"], ondelete="CASCADE"),
)

# A file in a store, and at the same time the job of ingesting it: claimed under a fence, held by a lease.
vector_store_files = Table(
    "vector_store_files",
    metadata,
    Column("store_id", String(80), primary_key=True),
    Column("file_id", String(80), primary_key=True),
    Column("key", String(1024), nullable=False),  # names the document, of which the file is one version
    Column("version", Integer, nullable=False),  # of the document: 1, 2, …
    Column("since_version", Integer),  # the store's version that found it first; null before
    Column("until_version", Integer),  # the first that did not find it any more; null while it is found
    Column("same_as", String(80)),  # the document's file that has the same content and is searched in its place
    Column("completed_at", Float),
    Column("batch_id", String(80)),
    Column("status", String(20), nullable=False),  # in_progress, completed, cancelled, failed
    Column("error_code", String(40)),
    Column("error_message", Text),
    Column("attributes", JSON, nullable=False),
    Column("chunking_strategy", JSON, nullable=False),
    Column("usage_bytes", BigInteger, nullable=False),
    Column("passages", Integer, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("fence", Integer, nullable=False),  # raised by each claim; a result under an older one is refused
    Column("lease_until", Float, nullable=False),  # 0 while unclaimed
    Column("attempts", Integer, nullable=False),
    ForeignKeyConstraint(["store_id"], ["vector_stores.id"], ondelete="CASCADE"),
    ForeignKeyConstraint(["file_id"], ["files.id"], ondelete="CASCADE"),
    Index("vector_store_files_by_status", "status", "lease_until"),
    Index("vector_store_files_by_batch", "batch_id"),
    Index("vector_store_files_by_key", "store_id", "key"),
    Index("vector_store_files_by_creation", "store_id", "created_at", "file_id"),
    Index("vector_store_files_by_completion", "completed_at"),
)

file_batches = Table(
    "file_batches",
    metadata,
    Column("id", String(80), primary_key=True),
    Column("store_id", String(80), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    ForeignKeyConstraint(["store_id"], ["vector_stores.id"], ondelete="CASCADE"),
)

# A store that is being moved to another encoder, or whose move has failed: claimed under a fence, held by a lease. What
# is made for it goes into a table that nobody searches, until that takes the place of the store's.
reembeddings = Table(
    "reembeddings",
    metadata,
    Column("store_id", String(80), primary_key=True),
    Column("encoder", String(255), nullable=False),  # the new one
    Column("table_suffix", String(20), nullable=False),  # of the table that is being filled
    Column("status", String(20), nullable=False),  # in_progress, failed
    Column("error_code", String(40)),
    Column("error_message", Text),
    Column("files_done", Integer, nullable=False),
    Column("files_total", Integer, nullable=False),
    Column("seconds_left", Integer),  # null while nobody knows
    Column("created_at", BigInteger, nullable=False),
    Column("fence", Integer, nullable=False),
    Column("lease_until", Float, nullable=False),
    Column("attempts", Integer, nullable=False),  # claims since something was done
    ForeignKeyConstraint(["store_id"], ["vector_stores.id"], ondelete="CASCADE"),
)

# How often what became of a store's searches, from all gateways: see `Tally` in metrics.py.
search_tallies = Table(
    "search_tallies",
    metadata,
    Column("store_id", String(80), primary_key=True),
    Column("kind", String(20), primary_key=True),  # search, failed_search, query_cache_hit, query_cache_miss
    Column("bucket", Integer, primary_key=True),  # of time, logarithmic; 0 for all but searches
    Column("total", BigInteger, nullable=False),
    ForeignKeyConstraint(["store_id"], ["vector_stores.id"], ondelete="CASCADE"),
)

# A backup or a restore that is to be made, is being made or has failed: claimed under a fence, held by a lease. A
# completed backup is in its repository, and no longer here.
backup_jobs = Table(
    "backup_jobs",
    metadata,
    Column("id", String(80), primary_key=True),
    Column("kind", String(20), nullable=False),  # backup, restore, prune
    Column("backup_id", String(80), nullable=False),
    Column("status", String(20), nullable=False),  # in_progress, completed, failed
    Column("request", JSON, nullable=False),
    Column("result", JSON, nullable=False),  # as far as it is known
    Column("error_code", String(40)),
    Column("error_message", Text),
    Column("created_at", BigInteger, nullable=False),
    Column("fence", Integer, nullable=False),
    Column("lease_until", Float, nullable=False),
    Index("backup_jobs_by_status", "status", "created_at"),
)

# The settings of each generating model: one row for each change, and none is ever changed.
model_settings = Table(
    "model_settings",
    metadata,
    Column("model_id", String(255), primary_key=True),
    Column("revision", Integer, primary_key=True),  # 1, 2, …
    Column("settings", JSON, nullable=False),  # only what is set
    Column("author", String(80), nullable=False),
    Column("created_at", BigInteger, nullable=False),
)
