"""Imports of most tests' processes. The process from which tests.support.forked forks has done them once.

DuckDB is not among them: it starts a thread when it is imported.
"""

import ham_dist.cli.bundles
import ham_dist.cli.runs
import ham_dist.cli.scores
import ham_dist.library
import ham_dist.run  # noqa: F401
