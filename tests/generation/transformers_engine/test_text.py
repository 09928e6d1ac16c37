import pytest

from serve_app.generation.transformers_engine.text import TextStream
from tests.language_model import END, byte_tokenizer

TOKENIZER = byte_tokenizer()


def stream(text: str, *stop: str) -> tuple[list[str], TextStream]:
    """What comes out when the text's bytes come one by one."""
    writing = TextStream(TOKENIZER, TOKENIZER.encode("user:Hi\n").ids, stop)
    pieces = []
    for token_id in TOKENIZER.encode(text).ids:
        pieces.append(writing.add([token_id]))
        if writing.stopped_by is not None:
            return pieces, writing
    return [*pieces, writing.end()], writing


def test_a_character_of_several_tokens_comes_whole() -> None:
    pieces, _ = stream("né €5")

    assert [piece for piece in pieces if piece] == ["n", "é", " ", "€", "5"]


def test_special_tokens_are_no_text() -> None:
    assert "".join(stream(f"a{END}b")[0]) == "ab"


@pytest.mark.parametrize("text", ["one END two", "oneEND", "one ENEND"])
def test_nothing_comes_out_from_the_stop_string_on(text: str) -> None:
    pieces, writing = stream(text, "END", "STOP")

    assert "".join(pieces) == text[: text.index("END")]
    assert writing.stopped_by == "END"


def test_the_beginning_of_a_stop_string_is_only_held_back() -> None:
    pieces, writing = stream("an ENd and EN", "END")

    assert "".join(pieces) == "an ENd and EN"
    assert writing.stopped_by is None


def test_the_first_of_two_stop_strings_counts() -> None:
    writing = TextStream(TOKENIZER, [], ("two", "one"))

    assert writing.add(TOKENIZER.encode("zero one two").ids) == "zero "
    assert writing.stopped_by == "one"
