"""Texts are in plain English and Google style; the number of known findings only shrinks."""

import json
from pathlib import Path

import pytest

from tests.support.words import ALLOWED, FORBIDDEN, checked_files, counts, findings

FIX = "`python -m tests.support.words FILE` lists them."


@pytest.fixture(scope="module")
def found() -> dict[str, int]:
    return counts([finding for path in checked_files() for finding in findings(path)])


def test_no_file_has_more_findings_than_are_allowed(found: dict[str, int]) -> None:
    allowed = json.loads(ALLOWED.read_text(encoding="utf-8"))
    more = {
        path: f"{count}, allowed {allowed.get(path, 0)}"
        for path, count in found.items()
        if count > allowed.get(path, 0)
    }
    assert more == {}, f"new words or docstrings to rewrite. {FIX}"


def test_the_list_of_allowed_findings_is_up_to_date(found: dict[str, int]) -> None:
    allowed = json.loads(ALLOWED.read_text(encoding="utf-8"))
    fewer = {
        path: f"{found.get(path, 0)}, listed {count}"
        for path, count in allowed.items()
        if found.get(path, 0) < count
    }
    assert fewer == {}, "run `python -m tests.support.words --update` and commit the shorter list"


def test_every_source_file_is_checked() -> None:
    names = {path.name for path in checked_files()}
    assert {"README.md", "pyproject.toml", "template.toml", "schema.py", "components.py", "bench.py"} <= names


def _found(folder: Path, source: str, name: str = "example.py") -> list[tuple[int, str]]:
    path = folder / name
    path.write_text(source, encoding="utf-8")
    return [(finding.line, finding.text) for finding in findings(path)]


@pytest.mark.parametrize("opening", ["What", "Whether", "How", "Of", "Likewise", "The same", "As"])
@pytest.mark.parametrize(
    "source",
    [
        '"""{} it is."""',
        'def f():\n    """{} it is."""',
        'class A:\n    b: int\n    """{} it is."""',
        'x = option(help="{} it is.")',
    ],
)
def test_openings(tmp_path: Path, source: str, opening: str) -> None:
    assert opening in [text for _, text in _found(tmp_path, source.format(opening))]


def test_openings_in_code_are_free(tmp_path: Path) -> None:
    assert _found(tmp_path, 'titles = ["What it keeps", "Of all"]\n') == []


@pytest.mark.parametrize(
    "text",
    [
        "errors that are the user's to solve", "stand beside it", "Likewise here", "lest it fail",
        "starts afresh", "made anew", "it goes on with the next", "a folder is in the way of it",
        "it is told of", "the recipe says so", "each rank has the word", "what it asks for",
        "no weights of worth", "the file is passed over", "another process is at this run",
        "Its batch lies in x",
        "the kind of sharding", "ids a row", "the rule of a table", "the tables' start",
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "source",
    ["# {}\n", '"""A text: {}."""\n', 'raise ValueError(f"{{x}}: {}")\n', 'x = 1\n"""A text: {}."""\n'],
)
def test_forbidden_words(tmp_path: Path, source: str, text: str) -> None:
    assert len(_found(tmp_path, source.format(text))) == 1


@pytest.mark.parametrize("name", ["page.md", "recipe.toml", "page.html", "Makefile"])
def test_documents_are_checked_as_a_whole(tmp_path: Path, name: str) -> None:
    assert _found(tmp_path, "one\n\nit stands beside\n", name) == [(3, "beside")]


def test_names_and_similar_words_are_free(tmp_path: Path) -> None:
    source = (
        "mend = beside = 1  # besides, recommended, ids lie in [0, C_j), latest\n"
        "for told in (mend,):\n    pass\n"
    )
    assert _found(tmp_path, source) == []


def test_lines_of_long_docstrings_are_found(tmp_path: Path) -> None:
    source = 'def f(path):\n    """Reads.\n\n    One line.\n    It is told.\n    """\n'
    assert _found(tmp_path, source) == [(5, "told")]


OLD_STYLE = '''
def f(path, rows):
    """Reads a file.

    path:   a file.
    rows: how many.
    raises: DataError if it cannot.
    """
'''
GOOGLE_STYLE = '''
def f(path, rows):
    """Reads a file: quickly.

    Args:
        path: A file.
        rows: Rows, of which
            rest: not a parameter.
    Returns:
        Its text.
    Raises:
        DataError: The file is missing.
    Source: HAM paper, Eq. 1.
    """

class A:
    """Holds a number.

    Attributes:
        number: A number.
    """
    number: int
'''


def test_tables_of_parameters_are_not_google_style(tmp_path: Path) -> None:
    assert _found(tmp_path, OLD_STYLE) == [(5, "path:"), (6, "rows:"), (7, "raises:")]


def test_google_style_is_free(tmp_path: Path) -> None:
    assert _found(tmp_path, GOOGLE_STYLE) == []


def test_sections_stand_on_lines_of_their_own(tmp_path: Path) -> None:
    assert _found(tmp_path, 'def f():\n    """Reads.\n\n    Returns: Its text.\n    """\n') == [
        (4, "Returns: I")
    ]


def test_args_name_the_parameters(tmp_path: Path) -> None:
    source = 'def f(path):\n    """Reads.\n\n    Args:\n        path: A file.\n        file: Gone.\n    """\n'
    assert _found(tmp_path, source) == [(6, "file")]


def test_attributes_of_a_class_are_not_a_table(tmp_path: Path) -> None:
    assert _found(
        tmp_path, 'class A:\n    """Holds.\n\n    number: a number.\n    """\n\n    number: int\n'
    ) == [(4, "number:")]


def test_every_forbidden_phrase_has_a_hint() -> None:
    assert all(FORBIDDEN.values())
