"""Makes text from outside safe to print: file names, field names, values, messages of libraries."""

import unicodedata

_KEPT = "\n\t"
# Unicode's bidirectional controls, which change the order in which a terminal shows the following text.
_BIDIRECTIONAL = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: str) -> str:
    """`text` with control characters, lone surrogates and bidirectional controls as escapes (`\\x1b`).

    New lines and tabs are kept. A terminal shows the result as plain text.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    if letter in _KEPT:
        return letter
    if unicodedata.category(letter) in ("Cc", "Cs") or letter in _BIDIRECTIONAL:
        return letter.encode("unicode_escape", "surrogatepass").decode("ascii")
    return letter


def shown(text: str, letters: int = 80) -> str:
    """`text` in quotes on one line, for messages: unprintable characters escaped, cut off after `letters`."""
    return repr(text[:letters]) + ("..." if len(text) > letters else "")
