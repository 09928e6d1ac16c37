"""`generation.tokens`: a tokenizer from a folder."""

from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from serve_app.generation.tokens import load_token_counter


def test_counts_as_the_tokenizer_in_the_folder_does(tmp_path: Path) -> None:
    tokenizer = Tokenizer(WordLevel({"<s>": 0, "?": 1, "rain": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))

    count_tokens = load_token_counter(str(tmp_path))

    assert [count_tokens(text) for text in ("", "rain", "no rain, no")] == [0, 1, 4]
