"""The release job runs commands and attests files that exist. It is not run here."""

import re
from typing import Any

import yaml

from config.settings import ROOT

STEPS: list[dict[str, Any]] = yaml.safe_load(
    (ROOT / ".github" / "workflows" / "release.yml").read_text()
)["jobs"]["release"]["steps"]
MAKEFILE = (ROOT / "Makefile").read_text()


def test_the_release_job_runs_targets_of_the_makefile() -> None:
    targets = re.findall(r"^make (\S+)", "\n".join(step.get("run", "") for step in STEPS), re.M)
    assert targets == ["check", "wheel", "audit"]
    for target in targets:
        assert re.search(rf"^{target}:", MAKEFILE, re.M), target


def test_the_release_job_attests_the_sbom_that_make_audit_writes() -> None:
    attested = [step["with"] for step in STEPS if "attest" in step.get("uses", "")]
    assert [one["subject-path"] for one in attested] == ["dist/*.whl"] * 2
    (sbom,) = (one["sbom-path"] for one in attested if "sbom-path" in one)
    assert f"--output {sbom}\n" in MAKEFILE
