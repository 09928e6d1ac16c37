import numpy as np
import pytest

from serve_app.conversation.insights.message import MAX_CHARACTERS, build_facts
from serve_app.types import Json
from serve_app.types.conversation import MessageFacts


def item(text: str, **fields: str) -> Json:
    return {"type": "message", "role": "user", "status": "completed", "content": text, **fields}


def facts_of(text: str, **fields: str) -> MessageFacts:
    return build_facts(item(text, **fields), np.zeros(2, np.float32))


def test_content_in_parts_is_one_text() -> None:
    parts = [{"type": "input_text", "text": "Where is"}, {"type": "input_text", "text": "the ferry?"}]

    facts = build_facts({**item(""), "content": parts}, np.zeros(2, np.float32))

    assert (facts.words, facts.is_question, facts.terms) == (4, True, ("ferry",))


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The ferry to the island sails at nine in the morning.", "en"),
        ("Le bateau pour l'île part à neuf heures du matin.", "fr"),
        ("Die Fähre zur Insel fährt um neun Uhr morgens ab.", "de"),
        ("今天天气很好，我们去公园吧", "zh"),
        ("yes", None),
        ("", None),
        ("42 + 17", None),
    ],
)
def test_the_language_is_told_where_it_can_be(text: str, language: str | None) -> None:
    assert facts_of(text).language == language


def test_sentiment_has_a_sign_and_a_size() -> None:
    assert facts_of("This is wonderful, thank you so much!").english_sentiment > 0.5
    assert facts_of("This is terrible, I hate it.").english_sentiment < -0.5
    assert facts_of("The ferry sails at nine.").english_sentiment == 0


def test_the_sentiment_of_a_long_text_is_the_mean_of_its_sentences() -> None:
    good, bad = facts_of("I love it.").english_sentiment, facts_of("I hate it.").english_sentiment

    assert facts_of("I love it. I hate it.").english_sentiment == pytest.approx((good + bad) / 2, abs=1e-3)


@pytest.mark.parametrize(
    "text", ["Where is it?", "where is it", "Can you help me", "¿Dónde está?", "它在哪里？", "أين هو؟"]
)
def test_questions_are_seen(text: str) -> None:
    assert facts_of(text).is_question


@pytest.mark.parametrize("text", ["It is here.", "I know where it is.", "Canned food is there", ""])
def test_other_texts_are_no_questions(text: str) -> None:
    assert not facts_of(text).is_question


@pytest.mark.parametrize(
    "text",
    [
        "I don't know.",
        "I’m sorry, but I cannot answer that.",
        "The sources do not say when the lamp was electrified.",
        "The price is not mentioned in the documents.",
        "There is no information about the ferry.",
    ],
)
def test_evasions_are_seen(text: str) -> None:
    assert facts_of(text, role="assistant").is_evasive


@pytest.mark.parametrize("text", ["The lamp was electrified in 1932 [1].", "You do not know him.", "I find it here."])
def test_answers_are_no_evasions(text: str) -> None:
    assert not facts_of(text, role="assistant").is_evasive


@pytest.mark.parametrize(("text", "continues"), [("That is true", True), ("ok , thanks", True), ("Itemise it", False)])
def test_words_that_point_back(text: str, continues: bool) -> None:
    assert facts_of(text).continues is continues


def test_terms_are_words_that_say_something_and_pairs_of_neighbours() -> None:
    facts = facts_of("The lighthouse keeper is Yann. Keeper of what?")

    assert facts.terms == ("lighthouse", "keeper", "lighthouse keeper", "yann", "keeper")


def test_stop_words_of_the_text_s_own_language_are_left_out() -> None:
    assert facts_of("Die Fähre fährt nicht zu der Insel, wenn das Wetter so ist.").terms == (
        "fähre",
        "fährt",
        "fähre fährt",
        "insel",
        "wetter",
    )


@pytest.mark.parametrize("text", ["ha" * 5_000, "so, " * 5_000, " " * 20_000, "?!" * 5_000, "\n" * 20_000])
def test_odd_texts_are_read_in_reasonable_time(text: str) -> None:
    facts = facts_of(text)

    assert facts.characters == len(text) > MAX_CHARACTERS
    assert len(facts.opening) <= 61


def test_an_item_without_a_status_is_complete() -> None:
    message = item("Hello there")
    del message["status"]

    assert build_facts(message, np.zeros(2, np.float32)).status == "completed"
