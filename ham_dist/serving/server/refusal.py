"""Answers to requests that cannot be served, in HTTP's status codes."""

from collections.abc import Mapping
from typing import Any

LETTERS = 2000
"""Longest message of an answer: messages quote requests."""


class Refused(Exception):
    """Raised for a request that is not served.

    Args:
        status: HTTP status code.
        message: In four parts, as all errors of ham_dist: where, got, expected, how to fix.
        headers: More headers of the answer.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers or {}

    @property
    def message(self) -> str:
        """The message, cut to LETTERS."""
        text = str(self)
        return text if len(text) <= LETTERS else text[:LETTERS] + "..."


def shown(value: Any, letters: int = 40) -> str:
    """Returns the start of a JSON value as text, for messages."""
    try:
        return str(value)[:letters]
    except RecursionError:
        return "a value that is nested too deeply"
