"""Settings of the whole suite: property tests depend neither on the speed of the machine nor on what an earlier run left."""

from hypothesis import HealthCheck, settings

# Without a database nothing is written to the clone, where the user may have no right to write. Without a deadline a
# busy machine is no failure. Examples follow from the test's code, so that a run can be repeated.
settings.register_profile(
    "suite", database=None, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")
