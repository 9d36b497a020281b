"""A value of a wrong form anywhere in fleet.yaml is an error that names the file, never another."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from config.fleet import load
from config.settings import ROOT
from primarch_fleet.errors import ConfigError

Place = tuple[str | int, ...]

WRONG: list[Any] = [3, "x", "os.environ/NOT_SET", [3], [{}], {"a": []}, {3: 4}]


def full_file() -> dict[str, Any]:
    """The checkout's configuration, and the sections that it does not have."""
    file: dict[str, Any] = yaml.safe_load((ROOT / "config" / "fleet.yaml").read_text())
    file["providers"]["az"] = {
        "litellm_provider": "azure",
        "litellm_params": {"api_base": "https://az", "api_version": "v"},
    }
    file["deployments"] += [
        {
            "id": "inline",
            "model": "inline",
            "litellm_params": {"model": "openai/gpt-4o", "api_key": "os.environ/KEY", "rpm": 3},
            "model_info": {"mode": "chat", "input_cost_per_token": 1e-6, "base_model": "gpt-4o"},
            "max_output_tokens": 5,
            "price": {"input": "1", "output": "2"},
        },
        {"id": "az", "model": "az", "provider": "az", "upstream": "gpt-4o"},
    ]
    file["routing"] |= {"model_group_alias": {"alias": "gpt-4o"}, "health_checks": {"paid": False}}
    return file | {
        "lanes": {"realtime": {"max_queued": 5, "without_worker": "refuse"}},
        "litellm_settings": {"modify_params": True},
        "environment_variables": {"SOME_VARIABLE": "b"},
        "targets": {"error_rate": 0.1},
        "requests": {"user_id": "plain"},
    }


def places(value: Any, place: Place = ()) -> Iterator[Place]:
    yield place
    items = value.items() if isinstance(value, dict) else ()
    for key, inner in enumerate(value) if isinstance(value, list) else items:
        yield from places(inner, (*place, key))


def write(path: Path, values: Any) -> None:
    """Write YAML: libyaml does it in a tenth of the time of Python."""
    path.write_text(yaml.dump(values, Dumper=yaml.CSafeDumper))


def with_value(file: dict[str, Any], place: Place, value: Any) -> Any:
    if not place:
        return value
    changed: Any = copy.deepcopy(file)
    section = changed
    for key in place[:-1]:
        section = section[key]
    section[place[-1]] = value
    return changed


@pytest.mark.parametrize("wrong", WRONG, ids=repr)
def test_a_value_of_a_wrong_form_is_an_error_of_the_configuration(
    tmp_path: Path, wrong: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SOME_VARIABLE", raising=False)
    file, path = full_file(), tmp_path / "fleet.yaml"
    write(path, file)
    load(path)
    for place in places(file):
        write(path, with_value(file, place, wrong))
        try:
            load(path)
        except ConfigError as error:
            assert str(path) in str(error), place
