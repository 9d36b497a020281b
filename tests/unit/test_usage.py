"""Usage: every provider's report of tokens becomes disjoint counts."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primarch_fleet.usage import INPUT_KINDS, OUTPUT_KINDS, Usage, parse_usage, token_counts


def parsed(**usage: Any) -> dict[str, Any]:
    result = parse_usage(usage)
    assert result is not None
    return result.to_json()


def test_openai_prompt_when_cached_tokens_are_details_includes_them() -> None:
    assert parsed(
        prompt_tokens=10_000,
        completion_tokens=100,
        total_tokens=10_100,
        prompt_tokens_details={"cached_tokens": 9000},
    ) == {"text_input_tokens": 1000, "cached_input_tokens": 9000, "text_output_tokens": 100}


def test_responses_usage_when_details_are_of_input_and_output_is_read_alike() -> None:
    assert parsed(
        input_tokens=50,
        input_tokens_details={"cached_tokens": 20},
        output_tokens=40,
        output_tokens_details={"reasoning_tokens": 30},
        total_tokens=90,
    ) == {
        "text_input_tokens": 30,
        "cached_input_tokens": 20,
        "text_output_tokens": 10,
        "reasoning_tokens": 30,
    }


def test_anthropic_usage_when_the_cache_has_tokens_adds_them_to_the_prompt() -> None:
    assert parsed(
        input_tokens=3,
        cache_creation_input_tokens=12_304,
        cache_read_input_tokens=100,
        cache_creation={"ephemeral_5m_input_tokens": 304, "ephemeral_1h_input_tokens": 12_000},
        output_tokens=550,
    ) == {
        "text_input_tokens": 3,
        "cached_input_tokens": 100,
        "cache_write_tokens": 304,
        "cache_write_1h_tokens": 12_000,
        "text_output_tokens": 550,
    }


def test_litellm_form_of_anthropic_usage_when_totals_include_the_cache_adds_nothing() -> None:
    assert parsed(
        prompt_tokens=12_407,
        completion_tokens=550,
        total_tokens=12_957,
        cache_creation_input_tokens=12_304,
        cache_read_input_tokens=100,
        prompt_tokens_details={
            "cached_tokens": 100,
            "cache_creation_tokens": 12_304,
            "cache_creation_token_details": {"ephemeral_1h_input_tokens": 12_000},
        },
    ) == {
        "text_input_tokens": 3,
        "cached_input_tokens": 100,
        "cache_write_tokens": 304,
        "cache_write_1h_tokens": 12_000,
        "text_output_tokens": 550,
    }


@pytest.mark.parametrize("total", [{}, {"total_tokens": 12_407 + 550}])
def test_gateway_usage_when_the_cache_is_beside_the_prompt_adds_it(total: dict[str, int]) -> None:
    assert parsed(
        prompt_tokens=3,
        completion_tokens=550,
        cache_creation_input_tokens=12_304,
        cache_read_input_tokens=100,
        **total,
    ) == {
        "text_input_tokens": 3,
        "cached_input_tokens": 100,
        "cache_write_tokens": 12_304,
        "text_output_tokens": 550,
    }


@pytest.mark.parametrize(
    "reasoning",
    [{"completion_tokens_details": {"reasoning_tokens": 2809}}, {"reasoning_tokens": 2809}, {}],
)
def test_reasoning_when_the_total_says_that_it_is_apart_is_output(
    reasoning: dict[str, Any],
) -> None:
    assert parsed(
        prompt_tokens=10_120, completion_tokens=1499, total_tokens=14_428, **reasoning
    ) == {"text_input_tokens": 10_120, "text_output_tokens": 1499, "reasoning_tokens": 2809}


def test_reasoning_apart_when_the_prompt_is_cached_leaves_the_prompt_as_it_is() -> None:
    assert parsed(
        prompt_tokens=10_120,
        prompt_tokens_details={"cached_tokens": 2000},
        completion_tokens=1499,
        completion_tokens_details={"reasoning_tokens": 2809},
        total_tokens=14_428,
    ) == {
        "text_input_tokens": 8120,
        "cached_input_tokens": 2000,
        "text_output_tokens": 1499,
        "reasoning_tokens": 2809,
    }


def test_reasoning_when_no_total_tells_and_it_exceeds_the_answer_is_apart() -> None:
    details = {"completion_tokens_details": {"reasoning_tokens": 2809}}
    assert parsed(prompt_tokens=1, completion_tokens=1499, **details)["reasoning_tokens"] == 2809


def test_reasoning_when_the_total_includes_it_is_part_of_the_answer() -> None:
    details = {"completion_tokens_details": {"reasoning_tokens": 40}}
    usage = parsed(prompt_tokens=10, completion_tokens=50, total_tokens=60, **details)
    assert usage == {"text_input_tokens": 10, "text_output_tokens": 10, "reasoning_tokens": 40}


def test_modalities_when_some_of_them_are_cached_count_once() -> None:
    assert parsed(
        prompt_tokens=1000,
        prompt_tokens_details={
            "audio_tokens": 600,
            "image_tokens": 300,
            "cached_tokens": 500,
            "cached_tokens_details": {"audio_tokens": 400, "image_tokens": 50},
        },
        completion_tokens=70,
        completion_tokens_details={"audio_tokens": 50, "image_tokens": 5},
    ) == {
        "text_input_tokens": 50,
        "cached_input_tokens": 50,
        "cached_audio_input_tokens": 400,
        "cached_image_input_tokens": 50,
        "audio_input_tokens": 200,
        "image_input_tokens": 250,
        "text_output_tokens": 15,
        "audio_output_tokens": 50,
        "image_output_tokens": 5,
    }


def test_deepseek_and_moonshot_names_of_cached_tokens_are_known() -> None:
    for name in ("prompt_cache_hit_tokens", "cached_tokens"):
        assert parsed(prompt_tokens=10, **{name: 4})["cached_input_tokens"] == 4


@pytest.mark.parametrize(
    "written",
    [
        {"cache_creation_input_tokens": 900},
        {"cache_creation": {"ephemeral_5m_input_tokens": 900}, "cache_creation_input_tokens": 900},
    ],
)
def test_qwen_usage_when_the_request_marked_what_is_cached_has_a_kind_of_its_own(
    written: dict[str, Any],
) -> None:
    details = {"cached_tokens": 2048, "cache_type": "ephemeral", **written}
    tokens = {"prompt_tokens": 3019, "completion_tokens": 104, "total_tokens": 3123}
    usage = parsed(**tokens, prompt_tokens_details=details)
    assert usage == {
        "text_input_tokens": 71,
        "explicit_cached_input_tokens": 2048,
        "cache_write_tokens": 900,
        "text_output_tokens": 104,
    }
    implicit = parsed(**tokens, prompt_tokens_details={"cached_tokens": 2048})
    assert implicit["cached_input_tokens"] == 2048


def test_searches_when_the_usage_has_them_are_counted() -> None:
    tools = {"server_tool_use": {"web_search_requests": 2}}
    assert parsed(input_tokens=1, **tools)["web_searches"] == 2
    details = {"web_search_requests": 3, "google_maps_grounding_requests": 1}
    usage = parsed(prompt_tokens=1, prompt_tokens_details=details)
    assert (usage["web_searches"], usage["maps_searches"]) == (3, 1)


@pytest.mark.parametrize(
    ("prompt", "details", "expected"),
    [
        (0, {}, {}),
        (256, {}, {"image_input_tokens": 256}),
        (30, {"text_tokens": 28}, {"text_input_tokens": 28, "image_input_tokens": 2}),
    ],
)
def test_pictures_that_are_counted_have_the_tokens_beside_them(
    prompt: int, details: dict[str, int], expected: dict[str, int]
) -> None:
    usage = parsed(prompt_tokens=prompt, prompt_tokens_details={"image_count": 2, **details})
    assert usage == {"images": 2, **expected}


def test_service_tier_when_the_answer_names_it_wins_over_the_usage() -> None:
    usage = {"prompt_tokens": 1, "service_tier": "standard", "inference_geo": "us"}
    result = parse_usage(usage, "priority")
    assert result
    assert (result.service_tier, result.surcharges) == ("priority", ("us",))
    assert parse_usage(usage) == Usage(1, service_tier="standard", surcharges=("us",))


@pytest.mark.parametrize(
    "usage",
    [None, [], "12", {}, {"prompt_tokens": 0, "completion_tokens": 0}, {"prompt_tokens": None}],
)
def test_usage_when_it_reports_no_tokens_is_none(usage: object) -> None:
    assert parse_usage(usage) is None


def test_details_when_they_exceed_the_total_are_cut() -> None:
    assert parsed(
        prompt_tokens=10,
        completion_tokens=5,
        total_tokens=15,
        prompt_tokens_details={"cached_tokens": 50, "audio_tokens": 7},
        completion_tokens_details={"reasoning_tokens": 99, "audio_tokens": -3},
    ) == {"cached_input_tokens": 10, "reasoning_tokens": 5}


def test_counts_when_they_are_no_counts_are_zero() -> None:
    garbage: list[Any] = [None, "many", -5, True, [], {}, 10**12, float("nan"), float("inf")]
    for value in garbage:
        assert parsed(prompt_tokens=7, completion_tokens=value) == {"text_input_tokens": 7}
    assert parsed(prompt_tokens="12", completion_tokens=3.0) == {
        "text_input_tokens": 12,
        "text_output_tokens": 3,
    }


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda children: (
        st.lists(children, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                [
                    "audio_tokens",
                    "cached_tokens",
                    "cached_tokens_details",
                    "ephemeral_1h_input_tokens",
                    "reasoning_tokens",
                    "web_search_requests",
                ]
            ),
            children,
            max_size=4,
        )
    ),
    max_leaves=8,
)
NAMES = [
    "prompt_tokens",
    "input_tokens",
    "completion_tokens",
    "output_tokens",
    "total_tokens",
    "reasoning_tokens",
    "prompt_tokens_details",
    "completion_tokens_details",
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
    "cache_creation",
    "server_tool_use",
    "service_tier",
]


@given(st.dictionaries(st.sampled_from(NAMES), ANYTHING), ANYTHING)
def test_any_usage_when_it_is_garbage_gives_counts_that_are_not_negative(
    usage: dict[str, Any], tier: Any
) -> None:
    result = parse_usage(usage, tier)
    if result is not None:
        assert all(count >= 0 for count in token_counts(result))
        assert result.input_tokens + result.output_tokens == sum(token_counts(result))
        assert len(token_counts(result)) == len(INPUT_KINDS + OUTPUT_KINDS)


def test_details_of_transcriptions_are_read_under_their_own_names() -> None:
    assert parsed(
        input_tokens=132,
        input_token_details={"text_tokens": 119, "audio_tokens": 13, "cached_tokens": 64},
        output_tokens=121,
        output_token_details={"text_tokens": 30, "audio_tokens": 91},
        total_tokens=253,
    ) == {
        "text_input_tokens": 55,
        "cached_input_tokens": 64,
        "audio_input_tokens": 13,
        "text_output_tokens": 30,
        "audio_output_tokens": 91,
    }


def test_cache_writes_when_only_their_lifetimes_are_reported_are_beside_the_prompt() -> None:
    lifetimes = {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 200}
    assert parsed(input_tokens=5, cache_creation=lifetimes, output_tokens=7) == {
        "text_input_tokens": 5,
        "cache_write_tokens": 100,
        "cache_write_1h_tokens": 200,
        "text_output_tokens": 7,
    }


def test_cached_tokens_when_the_total_has_just_them_more_are_beside_the_prompt() -> None:
    cached = {"prompt_tokens_details": {"cached_tokens": 900}}
    assert parsed(prompt_tokens=1000, completion_tokens=20, total_tokens=1920, **cached) == {
        "text_input_tokens": 1000,
        "cached_input_tokens": 900,
        "text_output_tokens": 20,
    }


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"total_tokens": 100}, {"text_input_tokens": 100}),
        (
            {"prompt_tokens": None, "completion_tokens": 30, "total_tokens": 100},
            {"text_input_tokens": 70, "text_output_tokens": 30},
        ),
        (
            {"prompt_tokens": 70, "completion_tokens": 0, "total_tokens": 100},
            {"text_input_tokens": 70, "text_output_tokens": 30},
        ),
    ],
)
def test_total_when_a_side_is_not_counted_tells_its_tokens(
    usage: dict[str, Any], tokens: dict[str, int]
) -> None:
    assert parsed(**usage) == tokens


def test_service_tier_when_the_answer_s_is_empty_is_that_of_the_usage() -> None:
    usage = parse_usage({"prompt_tokens": 1, "service_tier": "flex"}, "")
    assert usage is not None
    assert usage.service_tier == "flex"
