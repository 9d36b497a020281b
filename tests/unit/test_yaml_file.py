"""A value of a YAML file is reported by the line where it is written."""

from pathlib import Path

import pytest

from config.yaml_file import YamlFile
from primarch_fleet.errors import ConfigError

TEXT = """\
base: &base
  timeout: 1
  retries: 2
merged:
  <<: *base
  retries: 3
"""


@pytest.mark.parametrize(
    ("place", "line"),
    [("base", 1), ("merged", 4), ("merged.timeout", 2), ("merged.retries", 6), ("merged.none", 4)],
)
def test_a_value_is_reported_where_it_is_written_also_if_it_is_merged_or_replaces_another(
    tmp_path: Path, place: str, line: int
) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text(TEXT)
    file = YamlFile(path)
    assert file.values["merged"] == {"timeout": 1, "retries": 3}
    assert file.report(tuple(place.split(".")), "wrong") == f"{path}:{line}: {place}: wrong"


def test_a_file_that_cannot_be_read_is_named_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        YamlFile(tmp_path / "missing.yaml")
    assert str(raised.value) == f"{tmp_path}/missing.yaml: No such file or directory"


def test_a_file_that_is_not_utf_8_is_refused_at_its_first_wrong_byte(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_bytes("name: é".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"fleet\.yaml: not UTF-8 at byte 6$"):
        YamlFile(path)
