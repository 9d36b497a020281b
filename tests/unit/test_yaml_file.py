"""A value of a YAML file is reported by the line where it is written."""

from pathlib import Path

import pytest

from config.yaml_file import YamlFile

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
