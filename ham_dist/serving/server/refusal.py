"""Answers to requests that cannot be served, in HTTP's status codes."""

from collections.abc import Mapping

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
