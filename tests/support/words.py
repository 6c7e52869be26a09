"""Checks docstrings, comments, messages and documents: words that hide the meaning, and Google style.

    python -m tests.support.words [PATHS]     print every finding as file:line (default: all files)
    python -m tests.support.words --update    rewrite tests/words_allowed.json (findings per file)

tests/test_words.py compares the findings with that list, which may only shrink.
"""

import argparse
import ast
import io
import json
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
ALLOWED = ROOT / "tests" / "words_allowed.json"
FILES = (
    "*.md",
    "Makefile",
    "pyproject.toml",
    "docs/**/*.md",
    "datasets/**/*.toml",
    "launch/**/*.toml",
    *(
        f"{folder}/**/*{suffix}"
        for folder in ("ham_dist", "launch", "perf")
        for suffix in (".py", ".md", ".html")
    ),
    "ham_dist/**/*.toml",
    "docs/**/*.py",
)
"""Glob patterns of the files that are checked by default."""

OPENINGS = re.compile(r"(What|Whether|How|Of|Likewise|The same|As)\b")
"""A docstring or a help text starts with what the object is or does, not with one of these."""

FORBIDDEN = {
    r"mend(s|ed|ing)?": "fix",
    r"beside": "next to, with, or in addition to",
    r"likewise": "also",
    r"lest": "so that ... not",
    r"afresh": "again, or from the start",
    r"anew": "again",
    r"(go|goes|going|went|gone) on": "continue, resume, or happen",
    r"in the way (of|that)?": "name what is wrong: already exists, blocks",
    r"told": "given, shown, reported, or warned",
    r"says": "states, shows, prints, or lists",
    r"(has|have|had) the (last )?word": "decides, takes precedence",
    r"ask(s|ed|ing)? for": "needs, requests, or requires",
    r"of worth": "initialized, useful",
    r"passed over": "skipped",
    r"(is|are) the user's to": "the user can",
    r"another process is at": "locked by another process",
    r"lies? in(?! [\[(])": "is in, is saved to",
    r"(whence|thereof|therein|hitherto|albeit|forthwith)": "a common word",
    r"without a word": "silently",
    r"rooms": "packages",
    r"roll call": "peer check",
    r"kinds? of sharding|sharding kinds?": "sharding type",
    r"ids a row": "pooling factor",
    r"share in the cache|cache share": "load factor",
    r"rules? of (a|the|each) tables?|tables?'s? rules?|table rules?": "table optimizer",
    r"tables?'s? start|start of (the )?(weights|tables)": "initialization",
}
"""Regular expression of whole words -> what to write instead."""

_WORDS = [(re.compile(rf"\b(?:{pattern})(?!\w)", re.IGNORECASE), hint) for pattern, hint in FORBIDDEN.items()]
_ANY_WORD = re.compile(rf"\b(?:{'|'.join(FORBIDDEN)})", re.IGNORECASE)
_LOWER_CASE_SECTION = re.compile(r"^(raises|returns|yields|gives|source|args|attributes):", re.MULTILINE)
_SECTION_WITH_TEXT = re.compile(r"^(Args|Returns|Raises|Yields|Attributes):[ \t]+\S", re.MULTILINE)
_TABLE_ROW = re.compile(r"^(\*{0,2}\w+(?:, \*{0,2}\w+)*)(?: \([^)]*\))?:\s", re.MULTILINE)


@dataclass(frozen=True, order=True)
class Finding:
    """One place to rewrite.

    Attributes:
        path: File, relative to the project's root where it lies below it.
        line: Line number, from 1.
        text: The words that were found.
        hint: A better wording.
    """

    path: str
    line: int
    text: str
    hint: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text!r}: {self.hint}"


def findings(path: Path) -> list[Finding]:
    """All findings of one file, by line. Python files are parsed; of other files all text is checked."""
    source = path.read_text(encoding="utf-8")
    found = _in_python(source) if path.suffix == ".py" else _forbidden(source, 1)
    shown = path.resolve()
    name = str(shown.relative_to(ROOT) if shown.is_relative_to(ROOT) else path)
    return sorted(Finding(name, line, text, hint) for line, text, hint in found)


def checked_files(paths: list[Path] | None = None) -> list[Path]:
    """The files under `paths`, or those of `FILES` when none are given, without duplicates."""
    if paths is None:
        return sorted({path for pattern in FILES for path in ROOT.glob(pattern)})
    found: set[Path] = set()
    for path in paths:
        found |= (
            {path}
            if path.is_file()
            else {each for each in path.rglob("*") if each.suffix in (".py", ".md", ".toml")}
        )
    return sorted(found)


def counts(found: list[Finding]) -> dict[str, int]:
    """Number of findings of every file that has any."""
    return dict(sorted(Counter(finding.path for finding in found).items()))


def _forbidden(text: str, first_line: int) -> Iterator[tuple[int, str, str]]:
    """Forbidden words of a text that starts at line `first_line` of its file."""
    if not _ANY_WORD.search(text):
        return
    for pattern, hint in _WORDS:
        for match in pattern.finditer(text):
            yield first_line + text.count("\n", 0, match.start()), match.group(), hint


def _in_python(source: str) -> Iterator[tuple[int, str, str]]:
    tree = ast.parse(source)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield from _forbidden(token.string, token.start[0])
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from _forbidden(node.value, node.lineno)
        if isinstance(node, ast.keyword) and node.arg == "help":
            for part in ast.walk(node.value):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield from _opening(part.value, part.lineno)
                    break
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings(node)


def _docstrings(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef,
) -> Iterator[tuple[int, str, str]]:
    """Findings on the docstring of a node, and on the strings under its attributes."""
    for number, statement in enumerate(node.body):
        if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)):
            continue
        value = statement.value.value
        if isinstance(value, str):
            yield from _opening(value, statement.lineno)
            if number == 0:
                yield from _google_style(node, value, statement.lineno)


def _opening(text: str, line: int) -> Iterator[tuple[int, str, str]]:
    if match := OPENINGS.match(text.lstrip()):
        yield line, match.group(), "start with what the object is or does"


def _google_style(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, docstring: str, line: int
) -> Iterator[tuple[int, str, str]]:
    # The first line of a docstring has no indent. Unlike with `cleandoc`, line numbers stay the same here.
    head, _, rest = docstring.partition("\n")
    indent = min((len(each) - len(each.lstrip()) for each in rest.splitlines() if each.strip()), default=0)
    text = "\n".join([head, *(each[indent:] for each in rest.splitlines())])
    for match in _LOWER_CASE_SECTION.finditer(text):
        yield (
            line + text.count("\n", 0, match.start()),
            match.group(),
            f"a section {match.group().capitalize()!r} in Google style",
        )
    for match in _SECTION_WITH_TEXT.finditer(text):
        yield (
            line + text.count("\n", 0, match.start()),
            match.group(),
            "the section's name on a line of its own, its text indented below",
        )
    names = _names(node)
    for match in _TABLE_ROW.finditer(text):
        if names & {name.strip("* ") for name in match.group(1).split(",")}:
            section = "Attributes" if isinstance(node, ast.ClassDef) else "Args"
            yield (
                line + text.count("\n", 0, match.start()),
                match.group().strip(),
                f"below a line '{section}:', indented",
            )
    yield from _stale_arguments(node, text, line)


def _stale_arguments(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, text: str, line: int
) -> Iterator[tuple[int, str, str]]:
    """Names in the section `Args:` of a function that are not its parameters."""
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)+)", text, re.MULTILINE)
    if section is None:
        return
    lines = section.group(1).splitlines()
    indent = min(len(each) - len(each.lstrip()) for each in lines if each.strip())
    for number, each in enumerate(lines):
        match = _TABLE_ROW.match(each[indent:] + " ")
        if match and not each[:indent].strip() and not each[indent:][:1].isspace():
            for name in {name.strip("* ") for name in match.group(1).split(",")} - _names(node):
                place = line + text.count("\n", 0, section.start(1)) + number
                yield place, name, "no parameter of this function has that name"


def _names(node: ast.AST) -> set[str]:
    """Parameters of a function; attributes and parameters of __init__ of a class."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        arguments = node.args
        every = [
            *arguments.posonlyargs,
            *arguments.args,
            *arguments.kwonlyargs,
            arguments.vararg,
            arguments.kwarg,
        ]
        return {argument.arg for argument in every if argument is not None} - {"self", "cls"}
    names: set[str] = set()
    if isinstance(node, ast.ClassDef):
        for statement in node.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                names.add(statement.target.id)
            elif isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
                names |= _names(statement)
    return names


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("paths", nargs="*", type=Path, help="files and folders (default: the whole project)")
    parser.add_argument("--update", action="store_true", help=f"rewrite {ALLOWED.relative_to(ROOT)}")
    arguments = parser.parse_args()
    found = [finding for path in checked_files(arguments.paths or None) for finding in findings(path)]
    if arguments.update:
        if arguments.paths:
            parser.error("--update takes no paths: the list covers all files")
        before = sum(json.loads(ALLOWED.read_text(encoding="utf-8")).values()) if ALLOWED.exists() else 0
        ALLOWED.write_text(json.dumps(counts(found), indent=2) + "\n", encoding="utf-8")
        print(f"{ALLOWED.relative_to(ROOT)}: {before} findings before, {len(found)} now")
        return
    for finding in found:
        print(finding)
    print(f"{len(found)} findings in {len(counts(found))} files")


if __name__ == "__main__":
    main()
