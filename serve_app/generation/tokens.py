"""Counting tokens as the generator's model does, without importing the model."""

from collections.abc import Callable
from pathlib import Path

from cachetools import LRUCache
from tokenizers import Tokenizer

REMEMBERED_TEXTS = 20_000
"""Whose counts are kept: about 4 MB."""


def load_token_counter(source: str | Path) -> Callable[[str], int]:
    """Load the tokenizer of a model: from `tokenizer.json` in a folder, else by its Hugging Face id.

    For one thread.
    """
    file = Path(source) / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file)) if file.is_file() else Tokenizer.from_pretrained(str(source))

    # By hash, so that the texts themselves are not kept: each turn counts its whole window anew.
    known: LRUCache[tuple[int, int], int] = LRUCache(REMEMBERED_TEXTS)

    def count_tokens(text: str) -> int:
        key = (hash(text), len(text))
        tokens = known.get(key)
        if tokens is None:
            tokens = known[key] = len(tokenizer.encode(text, add_special_tokens=False))
        return tokens

    return count_tokens
