"""The facts of one message, from its text and its vector.

Words, sentiment and cues come from lists, and the lists of cues and feelings are English. What they cannot know of
another language they leave open.
"""

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import chain

import numpy as np
from stop_words import LANGUAGE_MAPPING, get_stop_words
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from serve_app.types import FloatMatrix, FloatVector, Json
from serve_app.types.conversation import MessageFacts

VERSION = 1
"""Of what is computed here. Facts of another version are computed anew: raise it with each change."""

MAX_CHARACTERS = 2_000
"""So much of a message is judged: its first page says what it is about, and how it feels."""

MAX_EMBEDDED_CHARACTERS = 600
"""About 100 words, which a CPU embeds in 25 ms: a call after one new message takes at most 50."""

_VECTOR_TYPE = np.dtype("<f2")
_MAX_TERMS = 60
_OPENING_CHARACTERS = 60

MIN_STOP_WORDS = 2
"""With fewer words of a language's own, a text's language counts as unknown: in a few words many look alike."""

_SCRIPTS = {"ja": r"[\u3040-\u30ff]", "ko": r"[\uac00-\ud7af]", "zh": r"[\u4e00-\u9fff]"}
"""Of languages whose words cannot be told apart by spaces. In this order: Japanese is written in Chinese signs, too."""

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
# A run of letters without spaces, as Chinese is written, is no word.
_MAX_WORD_CHARACTERS = 24

_SMALL_TALK = frozenset(
    re.findall(
        r"\w+",
        """
        hi hello hey bye yes yeah yep no nope ok okay oh wow haha ha lol please thanks thank well sure really right
        good great nice cool fine fun awesome amazing lovely neat sounds sound bad sorry glad love like likes liked
        know think thought guess say said tell see look mean want need let get got gets getting go goes going went
        gone come make makes made take do does did doing done one two lot lots much many bit kind thing things
        something anything everything someone way time times day days today now just also even still ever never
        always maybe actually usually sometimes long little big new old pretty quite around back first last next
        people
        """,
    )
)
"""Words that say nothing about a topic, beside the stop words."""

_QUESTION_MARKS = re.compile(r"[?？؟]")
_ASKS = re.compile(
    r"^(?:and |so |but |ok(?:ay)?,? |please )?(?:who|whom|whose|what|which|when|where|why|how"
    r"|(?:can|could|would|will|do|does|did|is|are|was|were|have|has|should) (?:you|i|we|it|there|they|he|she|the|this"
    r"|that|your))\b",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<=[.!?。！？])\s+|\n+")
_EVADES = re.compile(
    r"\b(?:i(?: do not| don['’]?t| can ?not| can['’]?t| am unable to|['’]m unable to) (?:know|find|answer|help|tell)"
    r"|i(?: am|['’]m) (?:not sure|sorry, but i)"
    r"|(?:sources?|documents?|passages?|context|text) (?:do not|does not|don['’]?t|doesn['’]?t)"
    r" (?:say|mention|answer|contain|provide|tell)"
    r"|(?:is|are) not (?:mentioned|stated|given|answered) in"
    r"|no information (?:about|on|is))",
    re.IGNORECASE,
)
_POINTS_BACK = re.compile(
    r"^[\W_]*(?:(?:and|but|so|oh|ah|ok|okay|well|haha|ha|wow|ouch|lol)\b[\s,.!]*)*"
    r"(?:that|that's|this|these|those|it|it's|they|he|she|him|them|same|me too|mine|yes|yeah|yep|no|nope|not|true"
    r"|thanks|thank you|really|why|because|sounds|both|neither|only|even|still)\b",
    re.IGNORECASE,
)


def text_of_message(body: Json) -> str:
    content = body.get("content")
    if isinstance(content, str):
        return content
    texts = (part.get("text") for part in content or () if isinstance(part, dict))
    return "\n".join(text for text in texts if isinstance(text, str))


def build_facts(body: Json, vector: FloatVector) -> MessageFacts:
    """Of a message of a user or an assistant. Takes about a millisecond."""
    text = text_of_message(body)
    beginning = text[:MAX_CHARACTERS]
    language = _language_of(beginning)
    return MessageFacts(
        role=body["role"],
        status=body.get("status") or "completed",
        characters=len(text),
        words=len(_WORD.findall(text)),
        language=language,
        english_sentiment=_sentiment_of(beginning),
        is_question=bool(_QUESTION_MARKS.search(text) or _ASKS.search(text)),
        is_evasive=bool(_EVADES.search(beginning)),
        continues=bool(_POINTS_BACK.search(text)),
        terms=tuple(_terms(beginning, language)[:_MAX_TERMS]),
        opening=_opening(text),
        vector=vector.astype(_VECTOR_TYPE).tobytes(),
    )


def vectors_of(messages: Sequence[MessageFacts]) -> FloatMatrix:
    """Of at least one message."""
    packed = b"".join(message.vector for message in messages)
    vectors: FloatMatrix = np.frombuffer(packed, _VECTOR_TYPE).astype(np.float32).reshape(len(messages), -1)
    return vectors


@cache
def _analyzer() -> SentimentIntensityAnalyzer:
    return SentimentIntensityAnalyzer()


@cache
def _stop_words(language: str | None) -> frozenset[str]:
    words = [*get_stop_words("en"), *get_stop_words(language or "en")]
    return _SMALL_TALK | {word.replace("'", "") for word in words}


@cache
def _languages_by_stop_word() -> dict[str, list[str]]:
    """Some 3 MB. A model that identifies languages would know them from fewer words, and take 25 times as much."""
    languages: dict[str, list[str]] = {}
    for code, name in LANGUAGE_MAPPING.items():
        for word in get_stop_words(name):
            languages.setdefault(word.replace("'", ""), []).append(code)
    return languages


def _language_of(text: str) -> str | None:
    """The language with the most stop words in the text, by its ISO 639-1 code; None if two have as many."""
    for language, script in _SCRIPTS.items():
        if re.search(script, text):
            return language
    known = _languages_by_stop_word()
    words = (word.lower().replace("'", "").replace("’", "") for word in _WORD.findall(text))
    hits = Counter(chain.from_iterable(known.get(word, ()) for word in words)).most_common(2)
    if not hits or hits[0][1] < MIN_STOP_WORDS or (len(hits) > 1 and hits[1][1] == hits[0][1]):
        return None
    return hits[0][0]


def _sentiment_of(text: str) -> float:
    # VADER judges sentences; of a longer text its authors take the mean.
    sentences = [each for each in _SENTENCE_END.split(text) if each.strip()]
    scores = [float(_analyzer().polarity_scores(each)["compound"]) for each in sentences]
    return round(sum(scores) / len(scores), 4) if scores else 0.0


def _terms(text: str, language: str | None) -> list[str]:
    """Words that carry meaning, and pairs of them that stand together."""
    terms: list[str] = []
    last, last_end = "", 0
    for match in _WORD.finditer(text):
        word = match[0].lower().replace("’", "'").removesuffix("'s")
        if not _carries_meaning(word, language):
            last = ""
            continue
        terms.append(word)
        if last and text[last_end : match.start()].isspace():
            terms.append(f"{last} {word}")
        last, last_end = word, match.end()
    return terms


def _carries_meaning(word: str, language: str | None) -> bool:
    return 2 < len(word) <= _MAX_WORD_CHARACTERS and word.replace("'", "") not in _stop_words(language)


def _opening(text: str) -> str:
    line = " ".join(text[: 4 * _OPENING_CHARACTERS].split())
    return line if len(line) <= _OPENING_CHARACTERS else f"{line[:_OPENING_CHARACTERS]}…"
