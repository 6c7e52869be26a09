"""Text from outside, made safe to print: file names, field names, values, messages of libraries."""

import unicodedata

_KEPT = "\n\t"
# Characters that change the order in which a terminal shows what follows (Unicode's bidirectional controls).
_BIDIRECTIONAL = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: str) -> str:
    """`text` with control characters, lone surrogates and bidirectional controls written as escapes (`\\x1b`).

    New lines and tabs stay. A terminal then shows the text and does nothing else with it.
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
    """`text` in quotes and on one line for a message, with what is not printable as escapes; cut after `letters`."""
    return repr(text[:letters]) + ("..." if len(text) > letters else "")
