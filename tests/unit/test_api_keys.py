"""Bearer keys: accepted, refused, rotated."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from api.errors import ApiError
from api.keys import ANYONE, KeyFile, Keys, key_hash, new_key
from api.requests import allowed_lane
from config.api import ApiKey
from config.settings import ROOT
from primarch_fleet.errors import ConfigError

NOW = datetime(2026, 11, 29, tzinfo=UTC)


def keys(*entries: ApiKey) -> Keys:
    return Keys(entries, lambda: NOW)


def entry(secret: str, **fields: object) -> ApiKey:
    return ApiKey.model_validate({"name": secret, "sha256": key_hash(secret), **fields})


def test_a_key_is_its_tenant() -> None:
    caller = keys(entry("one", tenant="a"), entry("two", tenant="b")).caller("two")
    assert (caller.name, caller.tenant, caller.role) == ("two", "b", "caller")


@pytest.mark.parametrize("bearer", [None, "", "on", "onex", "ONE", "\udcff"])
def test_a_wrong_key_is_refused(bearer: str | None) -> None:
    with pytest.raises(ApiError) as refused:
        keys(entry("one")).caller(bearer)
    assert refused.value.status == 401


def test_a_key_is_good_until_it_expires() -> None:
    later = entry("later", expires=NOW + timedelta(seconds=1))
    now = entry("now", expires=NOW)
    assert keys(later, now).caller("later")
    with pytest.raises(ApiError, match="expired"):
        keys(later, now).caller("now")


def test_roles_include_those_before_them() -> None:
    operator = keys(entry("one", role="operator")).caller("one")
    assert operator.may("caller")
    assert operator.may("reader")
    assert operator.may("operator")
    assert not keys(entry("one", role="reader")).caller("one").may("operator")


def test_a_key_may_use_models_by_pattern() -> None:
    caller = keys(entry("one", models=["gpt-4o*", "claude-?"])).caller("one")
    assert caller.may_use("gpt-4o-mini")
    assert caller.may_use("claude-5")
    assert not caller.may_use("gpt-5")
    assert not caller.may_use("GPT-4o")


def test_a_key_without_lanes_sends_no_request() -> None:
    reader = keys(entry("one", role="reader", lanes=[])).caller("one")
    for lane in ("auto", "realtime"):
        with pytest.raises(ApiError) as refused:
            allowed_lane(reader, lane)
        assert refused.value.status == 403


def test_without_keys_every_caller_is_an_operator() -> None:
    assert keys().caller(None) is ANYONE


def test_new_keys_differ_and_only_their_hash_is_for_the_file() -> None:
    (one, digest), (other, _) = new_key(), new_key()
    assert one != other
    assert one.startswith("sk-fleet-")
    assert digest == key_hash(one)
    assert one not in digest


def write(path: Path, *entries: ApiKey) -> None:
    values = yaml.safe_load((ROOT / "config" / "fleet.yaml").read_text())
    listed = [one.model_dump(mode="json", exclude_none=True) for one in entries]
    path.write_text(yaml.safe_dump(values | {"api": {"keys": listed}}))


def test_a_changed_file_is_read_again_and_a_wrong_one_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "fleet.yaml"
    write(path, entry("old"))
    file = KeyFile(path)
    write(path, entry("old"), entry("new"))
    file.look()
    assert [key.name for key in file.section.keys] == ["old", "new"]
    for wrong in ("api: [", "api: {keys: [{expires: 2027-02-30}]}", "api: &a [*a]", "\0"):
        path.write_text(wrong)
        caplog.clear()
        file.look()
        assert len(file.section.keys) == 2
        assert [getattr(one, "action", "") for one in caplog.records] == ["configuration_refused"]
    write(path)  # without keys every client would be let in
    file.look()
    assert len(file.section.keys) == 2
    path.unlink()
    file.look()
    assert len(file.section.keys) == 2


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "fleet.yaml", entry("one"), entry("one"))
    with pytest.raises(ConfigError, match="same name"):
        KeyFile(tmp_path / "fleet.yaml")


def test_the_servers_process_has_no_provider_library() -> None:
    code = "import sys, api.server; print(sorted({'litellm', 'openai', 'vllm'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert found.stdout == "[]\n"
