from typing import Any

import pytest

from serve_app.errors import InvalidRequest
from serve_app.generation.transformers_engine.sampling import ONLY_VLLM, Sampling, read_messages, read_sampling

HI = [{"role": "user", "content": "Hi"}]


def test_the_request_wins_over_the_models_defaults_and_null_is_open() -> None:
    defaults = {"temperature": 0.6, "top_k": 20}

    sampling = read_sampling({"messages": HI, "temperature": 0.2, "top_k": None, "max_tokens": 7}, defaults)

    assert sampling == Sampling(temperature=0.2, top_k=20, max_tokens=7)


def test_words_that_mean_the_same_are_read_alike() -> None:
    sampling = read_sampling(
        {"max_completion_tokens": 9, "stop": "END", "vllm_xargs": {"no_repeat_ngram_size": 3}, "user": "ada"}, {}
    )

    assert sampling == Sampling(max_tokens=9, stop=("END",), no_repeat_ngram_size=3)


@pytest.mark.parametrize("name", ONLY_VLLM)
def test_what_only_vllm_can_do_is_refused_by_name(name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"'{name}' is not supported") as refused:
        read_sampling({name: {"any": "thing"}}, {})
    assert refused.value.param == name


def test_several_choices_are_refused_and_one_is_not() -> None:
    with pytest.raises(InvalidRequest, match="'n'"):
        read_sampling({"n": 2}, {})
    read_sampling({"n": 1, "logprobs": False, "response_format": {"type": "text"}, "tools": []}, {})
    read_sampling({"tools": [{"type": "function"}], "tool_choice": "none"}, {})


@pytest.mark.parametrize(
    ("payload", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": 7}, "stop"),
    ],
)
def test_what_is_out_of_range_is_a_400(payload: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_sampling(payload, {})
    assert refused.value.param == param


def test_text_in_parts_becomes_one_text_and_a_picture_is_refused() -> None:
    parts = [{"type": "text", "text": "One"}, {"type": "text", "text": "two"}]
    assert read_messages({"messages": [{"role": "user", "content": parts}]}) == [
        {"role": "user", "content": "One\ntwo"}
    ]

    picture = [{"type": "image_url", "image_url": {"url": "x"}}]
    with pytest.raises(InvalidRequest, match="not text"):
        read_messages({"messages": [{"role": "user", "content": picture}]})
