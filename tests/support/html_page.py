"""Reads a report's HTML page back, as a browser would."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

EMPTY = {"meta", "br", "use", "path"}
"""Elements without an end tag; those of a figure may have one."""


@dataclass
class Page(HTMLParser):
    """The content of a page.

    Attributes:
        tables: Rows of cells by caption (the last table with that caption).
        exact: The tooltips of cells.
        warnings: Paragraphs of the class `warning`.
        markers: How often each group of a figure draws its marker, by the group's id.
        texts: Every piece of text.
    """

    html: str
    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    exact: set[str] = field(default_factory=set)
    warnings: list[str] = field(default_factory=list)
    markers: dict[str, int] = field(default_factory=dict)
    tags: set[str] = field(default_factory=set)
    attributes: list[tuple[str, str, str]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._groups: list[str] = []
        self._caption = ""
        self._rows: list[list[str]] = []
        self._into: list[str] | None = None
        self.feed(self.html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        given = {name: value or "" for name, value in attrs}
        self.attributes += [(tag, name, value) for name, value in given.items()]
        if tag == "g":
            self._groups.append(given.get("id", ""))
        elif tag == "use":
            for group in set(self._groups):
                self.markers[group] = self.markers.get(group, 0) + 1
        elif tag == "table":
            self._caption, self._rows = "", []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
            self._into = self._rows[-1]
        elif tag == "p" and given.get("class") == "warning":
            self.warnings.append("")
            self._into = self.warnings
        if tag == "span" and "title" in given:
            self.exact.add(given["title"])

    def handle_endtag(self, tag: str) -> None:
        if tag == "g":
            self._groups.pop()
        elif tag == "table":
            self.tables[self._caption] = self._rows
        elif tag in ("td", "th", "p"):
            self._into = None

    def handle_data(self, data: str) -> None:
        if self.lasttag == "caption" and data.strip():
            self._caption = data
        if self._into is not None:
            self._into[-1] += data
        self.texts.append(data)

    def ids(self) -> list[str]:
        return [value for _, name, value in self.attributes if name == "id"]
