import logging
from itertools import count

import pytest

from ham_dist.data.progress import progress


def test_lines_say_share_rate_and_time_left(caplog: pytest.LogCaptureFixture) -> None:
    """Two seconds pass whenever the clock is read; what was finished before counts for the share and not for the pace."""
    ticks = count()
    with caplog.at_level(logging.INFO, logger="ham_dist"), progress("reading", 1000, clock=lambda: 2.0 * next(ticks)) as step:
        step(500, 0)
        for _ in range(8):
            step(50, 10)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[-1].startswith("reading: done in ")
    assert len(lines) > 1, "more than ten seconds passed"
    assert lines[0].startswith("reading: ")
    assert " rows/s, " in lines[0]
    assert lines[0].endswith(" s left")
