"""Check the prose of the documentation and of the code: `python -m docs.prose`.

Reads Markdown, the docstrings and comments of Python and Lua files, and the names of tests. Three
checks:

    words       this project's own list: private words and phrases that hide the subject
    codespell   common misspellings
    proselint   published advice on style (https://github.com/amperser/proselint)

Code between backticks and in code blocks is left out.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tempfile
import tokenize
from collections.abc import Iterator
from pathlib import Path

from config.settings import ROOT

#: What is read: files, and folders with all that is below them.
CHECKED = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "README.md",
    "SECURITY.md",
    "config",
    "docker",
    "docs",
    "examples",
    "primarch_fleet",
    "scheduler",
    "api",
    "tasks",
    "tests",
    "workers",
)
#: Left out: pages that repeat the prose of checked code, and those that name what they forbid.
EXCLUDED = (
    "docs/configuration.md",
    "docs/design/names.md",
    "docs/errors.md",
    "docs/metrics.md",
    "docs/prose.py",
)
#: Regular expressions that no prose may match, and what to write instead.
WORDS = {
    r"(?<!dead )(?<!dead-)(?<!capital )\bletters?\b": "message",
    r"\bbells?\b": "push notification",
    r"\blook-?outs?\b": "fetch timer",
    r"\boutlooks?\b": "assessment",
    r"\bdesks?\b": "context",
    r"\bleash(es)?\b": "process guard",
    r"\boverheard\b": "stderr tail",
    r"\blots?\b": "the noun, or `many`",
    r"\b(its|the|an) ending\b": "the finisher, or `the end of ...`",
    r"\bpost offices?\b": "publisher",
    r"\b(of|to) which\b": "two sentences, the subject first",
    r"\bones? (that|which|who|of which)\b": "the noun",
    r"\b(is|are|was|were) to be\b": "`must be`",
    r"\b(it|that|which|they) lies?\b": "`is stored`",
    r"\bwho(m|mever|ever)\b": "the noun",
    r"\b(somebody|anybody|everybody)\b": "the noun: producer, worker, operator",
    r"\bgo(es|ing)? by (it|them|its|their|the)\b": "`uses`, `supports`",
    r"\bc(omes?|ame) to nothing\b": "`was cancelled`",
    r"\blies\b": "`is stored`",
    r"\bnobody\b": "the noun, negated",
    r"\b(is|are|was) away\b": "`does not answer`",
    r"\bgo(es)? on (with|until|as|to)\b": "`continues`",
    r"\bhears?\b": "`is notified`",
    r"\banew\b": "`again`",
    r"\brush(es)?\b": "burst",
    "\u2014": "two sentences, or a colon",
}
#: Words that no name in Python may contain.
NAMES = {"bell", "desk", "leash", "lookout", "lot", "outlook", "overheard", "seat", "sheet"}
PROSELINT = '{"checks": {"typography": false, "restricted": false, "annotations": false}}'


def main() -> int:
    """Print what is wrong, one line each; 1 if there is anything."""
    texts = {path: prose_of(path) for path in _files()}
    found = [problem for path, text in texts.items() for problem in own_words(path, text)]
    found += [problem for path in texts if path.suffix == ".py" for problem in private_names(path)]
    with tempfile.TemporaryDirectory() as folder:
        for path, text in texts.items():
            copy = Path(folder, path)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(text)
        Path(folder, ".proselintrc.json").write_text(PROSELINT)
        names = [str(path) for path in texts]
        found += _run(folder, "codespell_lib", *names)
        found += _run(folder, "proselint", "check", *names)
    print("\n".join(found), file=sys.stderr, end="\n" if found else "")
    return int(bool(found))


def own_words(path: Path, text: str) -> Iterator[str]:
    """The places where a text uses a word of WORDS."""
    for number, line in enumerate(text.splitlines(), 1):
        for pattern, better in WORDS.items():
            for match in re.finditer(pattern, line, re.IGNORECASE):
                yield f"{path}:{number}: {match[0]!r}: write {better}"


def private_names(path: Path) -> Iterator[str]:
    """The names of a Python file that contain a word of NAMES."""
    for token in tokenize.generate_tokens(io.StringIO((ROOT / path).read_text()).readline):
        words = re.findall(r"[A-Z]?[a-z]+", token.string) if token.type == tokenize.NAME else []
        for word in NAMES & {word.lower() for word in words}:
            yield f"{path}:{token.start[0]}: {token.string}: a name without {word!r}"


def prose_of(path: Path) -> str:
    """The prose of a file, on the lines where it stands; everything else is blank."""
    text = (ROOT / path).read_text()
    if path.suffix == ".md":
        return _without_code(text)
    if path.suffix == ".lua":
        comments = re.sub(r"^.*?(?:--\s*(.*))?$", r"\1", text, flags=re.MULTILINE)
        return _without_code(re.sub(r"^.*  .*$", "", comments, flags=re.MULTILINE))  # no tables
    return _without_code(_python_prose(text))


def _files() -> Iterator[Path]:
    for name in CHECKED:
        path = ROOT / name
        for found in sorted(path.rglob("*")) if path.is_dir() else [path]:
            relative = found.relative_to(ROOT)
            if "node_modules" in relative.parts:
                continue
            if found.suffix in (".md", ".py", ".lua") and relative.as_posix() not in EXCLUDED:
                yield relative


def _python_prose(source: str) -> str:
    lines = [""] * (source.count("\n") + 1)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not token.string.startswith("#!"):
            comment = re.sub(r"^#:?\s?|\s*(noqa|type: ignore|pragma).*", "", token.string)
            lines[token.start[0] - 1] = comment
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and "test_" in node.name:
            lines[node.lineno - 1] = node.name.replace("_", " ") + "."
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and ast.get_docstring(node) is not None:
                docstring = ast.get_docstring(node, clean=False) or ""
                for number, line in enumerate(docstring.splitlines(), first.lineno - 1):
                    lines[number] = line.strip() if "  " not in line.strip() else ""
    return "\n".join(lines)


def _without_code(text: str) -> str:
    """Blank out code blocks; join what backticks enclose to one word."""
    lines, fenced = [], False
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
            line = ""  # noqa: PLW2901
        lines.append("" if fenced or line.startswith("    ") else line)
    joined = re.sub(r"^(#+ .*)$", r"\1.", "\n".join(lines), flags=re.MULTILINE)
    joined = re.sub(r"\]\([^)]*\)", "]", joined)
    return re.sub(r"`[^`\n]*`", lambda code: "X" + re.sub(r"\W", "", code[0]), joined)


def _run(folder: str, *command: str) -> list[str]:
    done = subprocess.run(  # noqa: S603 - our own tools
        [sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True, check=False
    )
    lines = (done.stdout + done.stderr).splitlines()
    return [line.replace(folder + "/", "") for line in lines if line.strip()]


if __name__ == "__main__":
    sys.exit(main())
