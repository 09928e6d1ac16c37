"""When there will be room in an engine."""

from collections.abc import Iterable

from serve_app.admission.load import Load


def tokens_until_free(missing: Load, inside: Iterable[tuple[float, Load]], usual_tokens: float) -> float:
    """How many more tokens each sequence has to write until so much has left.

    `inside` are the tokens that each request still writes, and what it takes. What comes in its place writes as many as
    is usual.
    """
    left, tokens = Load(), 0.0
    for tokens, load in sorted(inside, key=lambda each: each[0]):
        left += load
        if missing.fits(left):
            return tokens
    rounds = max(missing.sequences / left.sequences, missing.tokens / left.tokens) - 1
    return tokens + rounds * usual_tokens
