"""What `fleet check-config` finds in a configuration: one line for each problem."""

from __future__ import annotations

from pathlib import Path

import pytest

from config.check import problems
from config.settings import ROOT

SHIPPED = (ROOT / "config" / "fleet.yaml").read_text()
MISTRAL = """
  mistral:
    litellm_provider: mistral
    api_key: os.environ/MISTRAL_API_KEY
"""


def line_of(text: str, part: str) -> int:
    """The number of the last line with a part."""
    return max(number for number, line in enumerate(text.splitlines(), 1) if part in line)


def changed(old: str, new: str) -> str:
    assert SHIPPED.count(old) == 1, old
    return SHIPPED.replace(old, new)


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        (
            changed("litellm_provider: openai", "litellm_provider: opeanai"),
            "opeanai",
            "providers.openai.litellm_provider: unknown to LiteLLM: opeanai; did you mean openai?",
        ),
        (
            changed("litellm_provider: openai", "litellm_provider: OpenAI"),
            "litellm_provider: OpenAI",
            "providers.openai.litellm_provider: unknown to LiteLLM: OpenAI; did you mean openai?",
        ),
        (
            changed("num_retries: 2", "num_retrys: 2"),
            "num_retrys",
            "routing.num_retrys: unknown key; did you mean num_retries?",
        ),
        (
            SHIPPED.replace("    batch: true", "    bacth: true", 1),
            "bacth",
            "deployments.0.bacth: unknown key; did you mean batch?",
        ),
        (
            changed("tenants:\n", "tenants:\n  acme:\n    dayly_budget: '1'\n"),
            "dayly_budget",
            "tenants.acme.dayly_budget: unknown key; did you mean daily_budget?",
        ),
        (SHIPPED + "surprise: 1\n", "surprise", "surprise: unknown key; remove it"),
        (
            changed("  timeout: 60", "  timeout: 60\n  num_retries: 3"),
            "num_retries: 3",
            f"routing.num_retries: also on line {line_of(SHIPPED, 'num_retries')}; keep one",
        ),
        (SHIPPED + "batch: {}\n", "batch: {}", "batch: also on line"),
        (
            changed("gpt-4o: [gpt-4o-mini]", "gpt-4o-mini: [gpt-4o, gpt-4o-mini]"),
            "gpt-4o-mini: [",
            "routing.fallbacks.gpt-4o-mini: a model cannot answer for itself",
        ),
        (
            changed("gpt-4o: [gpt-4o-mini]", "gpt-4o: [gpt-9]"),
            "gpt-9",
            "fallbacks name an unknown model: gpt-9",
        ),
        (
            changed("providers:\n", f"providers:{MISTRAL}") + "\n",
            "",
            "",
        ),
        (
            changed("providers:\n", f"providers:{MISTRAL}").replace(
                "provider: openai\n    upstream: gpt-4o-mini",
                "provider: mistral\n    upstream: mistral-small-latest",
            ),
            "",
            "deployments.1.batch: mistral has no batches; remove it, or use a provider of: "
            "anthropic, azure",
        ),
        (
            changed("upstream: gpt-4o-mini", "upstream: responses/gpt-4o-mini"),
            "",
            "deployments.1.batch: responses/gpt-4o-mini answers /v1/responses only; name the "
            "model gpt-4o-mini, with kind: responses",
        ),
        (
            changed("upstream: gpt-4o-mini", "upstream: gpt-5-pro\n    kind: chat"),
            "",
            "deployments.1.batch: gpt-5-pro answers /v1/responses only; name the model gpt-5-pro, ",
        ),
        (
            changed("upstream: gpt-4o-mini", "upstream: gpt-5-pro\n    kind: responses"),
            "",
            "",
        ),
        (
            changed("aggregate_interval: 5", "aggregate_interval: .inf"),
            ".inf",
            "batch.aggregate_interval: Input should be a finite number",
        ),
        (changed("id: openai-gpt-4o-mini", 'id: ""'), 'id: ""', "deployments.1.id: write a name"),
        (
            changed("model: smollm2-135m", 'model: "a\\nb"'),
            'model: "a',
            "engines.0.model: write a name on one line",
        ),
        (
            changed("os.environ/OPENAI_API_KEY", "os.environ/"),
            "api_key: os.environ/",
            "providers.openai.api_key: write os.environ/NAME",
        ),
        (
            changed("os.environ/OPENAI_BASE_URL", "https://me:secret@example.org/v1"),
            "me:secret",
            "providers.openai.api_base: a secret; write os.environ/NAME",
        ),
        (changed("  timeout: 60", "  timeout: [60"), "cooldown_time", "no YAML"),
        (SHIPPED + "api: {x: 2027-02-30}\n", "api: {x", "not a valid timestamp"),
        (SHIPPED + "api: {x: 2027-01-01T00:00:00+99:00}\n", "api: {x", "not a valid timestamp"),
        (SHIPPED + "api: {x: 0x_}\n", "api: {x", "not a valid int"),
        (SHIPPED + "api: {x: !!bool maybe}\n", "api: {x", "not a valid bool"),
    ],
)
def test_a_problem_is_reported_with_file_line_and_the_nearest_name(
    tmp_path: Path, text: str, place: str, words: str
) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text(text)
    found = problems(path, environment=False)
    if not words:
        assert found == []
        return
    (problem,) = found
    assert words in problem
    line = int(problem.removeprefix(f"{path}:").partition(":")[0])
    if place == "cooldown_time":  # where the parser notices
        assert abs(line - line_of(text, place)) <= 5
    elif place:
        assert line == line_of(text, place)
    else:
        assert "batch: true" in text.splitlines()[line - 1]


@pytest.mark.parametrize("text", ["api: &a {x: *a}", "api: " + "[" * 3000 + "]" * 3000])
def test_a_file_without_an_end_is_a_problem_of_the_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text(SHIPPED + text)
    assert problems(path, environment=False) == [f"{path}: nested too deeply"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", ": write keys with their values"),
        ("routing: x\n", ":1: routing: write keys with their values"),
        ("tenants: []\n", ":1: tenants: write keys with their values"),
        ("engines: {}\n", ":1: engines: write a list: `- ` before each entry"),
    ],
)
def test_a_value_of_the_wrong_form_is_reported_with_what_to_write(
    tmp_path: Path, text: str, problem: str
) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text(text)
    assert problems(path, environment=False) == [f"{path}{problem}"]


def test_each_problem_has_its_own_line_and_no_secret(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    text = changed("api_key: os.environ/OPENAI_API_KEY", "api_key: sk-secret")
    path.write_text(text.replace("num_retries: 2", "num_retries: many"))
    found = problems(path)
    assert len(found) == 2
    assert f"{path}:{line_of(text, 'sk-secret')}: providers.openai.api_key" in found[0]
    assert "sk-secret" not in "".join(found)


def test_a_key_that_is_twice_in_the_file_of_a_proxy_is_reported_by_its_line(tmp_path: Path) -> None:
    example = ROOT / "examples" / "litellm_proxy"
    (tmp_path / "fleet.yaml").write_text((example / "fleet.yaml").read_text())
    proxy = tmp_path / "config.yaml"
    text = (example / "config.yaml").read_text() + "model_list: []\n"
    proxy.write_text(text)
    (problem,) = problems(tmp_path / "fleet.yaml")
    line = line_of(text, "model_list")
    assert problem.endswith(f"{proxy}:{line}: model_list: also on line 2; keep one of them")
