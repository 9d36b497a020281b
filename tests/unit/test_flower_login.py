"""The login of Flower."""

from pathlib import Path

import pytest

from primarch_fleet.errors import ConfigError
from workers.observability.flower_login import flower_login


def test_a_login_is_made_and_announced_once(tmp_path: Path) -> None:
    first, second = (flower_login(tmp_path / "data", {}) for _ in range(2))
    assert first
    assert second
    assert first.basic_auth == second.basic_auth
    user, _, password = first.basic_auth.partition(":")
    assert len(password) >= 24
    path = tmp_path / "data" / "flower-login"
    assert path.stat().st_mode & 0o777 == 0o600
    assert all(part in first.announcement for part in (user, password, str(path)))
    assert second.announcement == ""


def test_no_two_folders_have_the_same_password(tmp_path: Path) -> None:
    assert flower_login(tmp_path / "a", {}) != flower_login(tmp_path / "b", {})


@pytest.mark.parametrize("variable", ["FLOWER_BASIC_AUTH", "FLOWER_AUTH"])
def test_a_login_of_the_operators_own_is_kept(tmp_path: Path, variable: str) -> None:
    assert flower_login(tmp_path, {variable: "me:secret"}) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "fleet:", ":secret", "fleet", "a:b,c", "a:b c"])
def test_a_file_without_a_login_is_an_error_that_does_not_show_it(
    tmp_path: Path, text: str
) -> None:
    (tmp_path / "flower-login").write_text(text)
    with pytest.raises(ConfigError, match=r"flower-login has no user:password: remove it"):
        flower_login(tmp_path, {})


def test_a_file_of_several_logins_is_read(tmp_path: Path) -> None:
    (tmp_path / "flower-login").write_text("ann:a,ben:b\n")
    login = flower_login(tmp_path, {})
    assert login
    assert login.basic_auth == "ann:a,ben:b"


def test_a_folder_that_cannot_be_written_is_an_error_with_another_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="or set FLOWER_BASIC_AUTH=user:password"):
        flower_login(tmp_path / "file" / "data", {})
