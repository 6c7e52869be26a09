import io

import pytest
from rich.console import Console

from ham_dist.io.console import make_table, print_parts

HOSTILE = ["[test]", "[/]", "[red]x[/red]", ":smile:", "\x1b[31mred", "a\u202eb", "\ud800", "[link=http://x]"]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_printed_as_they_are_and_control_nothing(name: str) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=200)
    table = make_table([name, "rows"], [[name, "1"]], title=name, total=[name, "1"])
    print_parts([name, table], console)
    printed = stream.getvalue()
    shown = name.encode("unicode_escape", "surrogatepass").decode() if not name.isprintable() else name
    assert printed.count(shown) == 5
    assert "\x1b" not in printed
    printed.encode()


def test_the_last_row_is_apart() -> None:
    stream = io.StringIO()
    print_parts(
        [make_table(["field", "rows"], [["a", "10"], ["b", "5"]], total=["all", "15"])], Console(file=stream)
    )
    lines = [line.strip() for line in stream.getvalue().splitlines() if line.strip()]
    assert lines[0].split() == ["field", "rows"]
    assert lines[-1].split() == ["all", "15"]
