"""The cross-encoder: it reads a question and a passage together, which tells more than their two vectors.

It runs on torch, which is imported when one is loaded: about 0.7 GB of memory more, and 5 s.
"""

from collections.abc import Sequence
from threading import Lock

import numpy as np

from serve_app.config import RerankerConfig
from serve_app.models import resolve_model
from serve_app.types import Scores


class CrossEncoder:
    """A loaded model. May be called from several threads, and works on one call at a time."""

    def __init__(self, model_source: str) -> None:
        import sentence_transformers
        from torch.nn import Sigmoid

        self._model = sentence_transformers.CrossEncoder(model_source)
        if self._model.num_labels != 1:
            raise ValueError(
                f"{model_source!r} gives {self._model.num_labels} numbers for a pair of texts; a reranker gives one"
            )
        # Some models name it, some name none, and scores are to be in [0, 1]; the order is the same.
        self._activation = Sigmoid()
        self._lock = Lock()  # the tokenizer keeps its padding and truncation as state

    def score(self, pairs: Sequence[tuple[str, str]]) -> Scores:
        """The relevance of each passage to its question, in order."""
        if not pairs:
            return np.empty(0, dtype=np.float32)
        with self._lock:
            scores = self._model.predict(list(pairs), activation_fn=self._activation, show_progress_bar=False)
        return np.asarray(scores, dtype=np.float32)


def load_cross_encoder(config: RerankerConfig) -> CrossEncoder:
    """Takes seconds. Raises ValueError for a package without a model, and for a model that is no reranker."""
    return CrossEncoder(resolve_model(config.model_source))
