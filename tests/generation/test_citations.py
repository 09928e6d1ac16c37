"""`generation.citations`: markers in any pieces, and citations where the model wrote none."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.generation.citations import CitedText, attribute
from serve_app.types import Json
from tests.fakes import build_passage

PASSAGES = (build_passage(1, "one"), build_passage(2, "two"), build_passage(3, "three", filename="2.txt"))


def run(*deltas: str) -> tuple[str, list[tuple[str, int]]]:
    cited = CitedText(PASSAGES)
    text = "".join([*map(cited.feed, deltas), cited.finish()])
    assert text == cited.text
    return text, [(each["file_id"], each["index"]) for each in cited.annotations]


def test_a_marker_becomes_a_citation_at_its_place() -> None:
    assert run("Basel lies on the Rhine [1]. So?") == ("Basel lies on the Rhine. So?", [("file_1", 23)])


def test_one_marker_may_name_several_passages() -> None:
    assert run("Both [1, 3] and[2,1].") == (
        "Both and.",
        [("file_1", 4), ("file_3", 4), ("file_2", 8), ("file_1", 8)],
    )


def test_markers_in_a_row_cite_the_same_place() -> None:
    assert run("Both [1][2].") == ("Both.", [("file_1", 4), ("file_2", 4)])


def test_a_number_that_names_no_passage_is_dropped() -> None:
    assert run("Never [4], never [0], once [9, 2].") == ("Never, never, once.", [("file_2", 18)])


@pytest.mark.parametrize(
    "text",
    [
        "[1](https://example.org)",
        "a [link](x)",
        "- [x] done",
        "in [2024]",
        "f[i]",
        "[1, two]",
        "[]",
        "[1",
        "[1, ",
        "a ",
    ],
)
def test_what_is_no_marker_stays(text: str) -> None:
    assert run(text) == (text, [])


def test_a_citation_names_the_file_and_the_place_in_it() -> None:
    cited = CitedText([*PASSAGES[:2], replace(PASSAGES[2], start=100, pages=(3, 4), heading=("Guide",))])
    cited.feed("Three [3].")

    place = {"start": 100, "end": 105, "page": 3, "last_page": 4, "heading": ["Guide"]}
    citation = {
        "type": "file_citation",
        "file_id": "file_3",
        "filename": "2.txt",
        "index": 5,
        "key": "2.txt",
        "version": 1,
        "place": place,
    }
    assert cited.annotations == [citation]


@pytest.mark.parametrize(
    ("delta", "shown"),
    [
        ("Hello", "Hello"),
        ("Hello ", "Hello"),
        ("see [", "see"),
        ("see [x", "see [x"),
        ("see [12", "see"),
        ("[123", "[123"),
    ],
)
def test_only_what_may_be_a_marker_is_held_back(delta: str, shown: str) -> None:
    assert CitedText(PASSAGES).feed(delta) == shown


@given(
    st.lists(st.sampled_from([*"[](), 0123x.", "[1]", " [2]", "[1, 2]", "[99]", "](", " word"]), max_size=30).map(
        "".join
    ),
    st.lists(st.integers(0, 100), max_size=20),
)
def test_any_split_into_deltas_gives_the_same(text: str, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]

    assert run(*(text[start:end] for start, end in pairwise(edges))) == run(text)


@given(st.text(alphabet="[], 0123x", max_size=200))
def test_little_is_held_back(text: str) -> None:
    cited = CitedText(())
    for character in text:
        cited.feed(character)
    held = cited.finish()

    assert len(held) <= len(" [12, 12, 12, 12, 12, 12, 12, 12, 12, 12]")


# --- after the fact -----------------------------------------------------------------------------

RHINE = build_passage(1, "The Rhine rises in the Swiss Alps and flows through Basel to Rotterdam.")
TEA = build_passage(2, "Green tea is brewed at 70 degrees for 2 minutes.")


def places(citations: list[Json]) -> list[tuple[str, int]]:
    return [(each["file_id"], each["index"]) for each in citations]


def test_each_sentence_is_cited_to_the_passage_it_was_taken_from() -> None:
    text = "Brew green tea at 70 degrees. It flows through Basel!\nNobody knows anything about penguins here."

    assert places(attribute(text, [RHINE, TEA])) == [("file_2", 29), ("file_1", 53)]


def test_a_sentence_with_half_of_its_words_elsewhere_is_not_cited() -> None:
    assert attribute("The Rhine flows past penguins, glaciers, volcanoes.", [RHINE, TEA]) == []


def test_between_equal_passages_the_better_ranked_is_cited() -> None:
    twin = build_passage(7, RHINE.text)

    assert places(attribute("It flows through Basel.", [twin, RHINE])) == [("file_7", 23)]


@pytest.mark.parametrize(
    ("passage", "sentence"),
    [
        ("莱茵河发源于瑞士阿尔卑斯山,流经巴塞尔。", "莱茵河流经巴塞尔。"),
        ("Рейн берёт начало в Альпах и протекает через Базель.", "Рейн протекает через Базель."),
        ("Der Rhein entspringt in den Alpen und fließt durch Basel.", "Der Rhein FLIESST durch Basel."),
    ],
)
def test_attribution_does_not_depend_on_the_language(passage: str, sentence: str) -> None:
    citations = attribute(sentence, [TEA, build_passage(5, passage)])

    assert places(citations) == [("file_5", len(sentence))]


def test_without_passages_nothing_is_cited() -> None:
    assert attribute("It flows through Basel.", []) == []


def test_an_answer_with_markers_is_not_attributed_again() -> None:
    cited = CitedText([RHINE, TEA])
    cited.feed("It flows through Basel. It flows through Rotterdam [2].")
    cited.finish()

    assert places(cited.annotations) == [("file_2", 50)]


def test_an_answer_without_markers_is_attributed_at_its_end() -> None:
    cited = CitedText([RHINE, TEA])
    cited.feed("It flows through Basel.")
    assert cited.annotations == []
    cited.finish()

    assert places(cited.annotations) == [("file_1", 23)]
