"""Settings of the whole suite: property tests do not depend on the machine's speed or on earlier runs."""

import os

from hypothesis import HealthCheck, settings

# No database: nothing is written to the clone, which may be read-only. No deadline: a busy machine is no
# failure.
# Examples are derived from the test's code, so that a run can be repeated.
settings.register_profile(
    "suite", database=None, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")

# Compiling a model takes a minute. The tests of compiled models ask for them.
os.environ["HAM_DIST_RUNTIME"] = "eager"
