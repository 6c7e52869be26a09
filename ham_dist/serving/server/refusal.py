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
    if isinstance(value, list):
        value = value[:letters]
        if any(isinstance(one, list | dict) for one in value):
            return "a nested list"  # printing it could take long, or exceed the limit of recursion
    elif isinstance(value, dict):
        return "an object"
    return str(value)[:letters]
