"""Check the links that the site's builder does not see: `python -m docs.links`.

mkdocs checks the links within docs/. This checks the relative links of the pages beside it
(README.md and others), and every path of this repository that a page names between backticks.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from config.settings import ROOT

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
#: Pages that may name paths of earlier versions.
HISTORY = {ROOT / "CHANGELOG.md", ROOT / "docs" / "design" / "names.md"}
FOLDERS = (
    "primarch_fleet|config|tasks|workers|scheduler|api|tests|docker|docs|examples|requirements"
)


def main() -> int:
    """Print the links that lead nowhere; 1 if there is any."""
    pages = [*PAGES, *sorted((ROOT / "docs").rglob("*.md"))]
    broken = [problem for page in pages for problem in (*_links(page), *_paths(page))]
    print("\n".join(broken), file=sys.stderr, end="\n" if broken else "")
    return int(bool(broken))


def _links(page: Path) -> Iterator[str]:
    if page not in PAGES:
        return
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text()):
        path = page.parent / target if target else page
        if not path.exists():
            yield f"{page.relative_to(ROOT)}: no file {target}"
        elif anchor and anchor not in _anchors(path):
            yield f"{page.relative_to(ROOT)}: no heading {target}#{anchor}"


def _paths(page: Path) -> Iterator[str]:
    if page in HISTORY:
        return
    for path in re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", page.read_text()):
        if not (ROOT / path).exists():
            yield f"{page.relative_to(ROOT)}: no file {path}"


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings}


if __name__ == "__main__":
    sys.exit(main())
