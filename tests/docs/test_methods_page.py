"""docs/methods.md has a row for every method of the package."""

import re

from ham_dist.methods.registry import METHODS
from tests.support.forked import ROOT


def test_every_method_has_a_row() -> None:
    page = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE))
    built_in = {name for name, method in METHODS.items() if method.__module__.startswith("ham_dist.")}
    assert built_in <= rows
