"""Counting tokens as the generator's model does, without importing the model."""

from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer


def load_token_counter(source: str | Path) -> Callable[[str], int]:
    """Load the tokenizer of a model: from `tokenizer.json` in a folder, else by its Hugging Face id."""
    file = Path(source) / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file)) if file.is_file() else Tokenizer.from_pretrained(str(source))

    def count_tokens(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False))

    return count_tokens
