"""Settings that every test shares."""

from hypothesis import settings

# The same examples every time: a failure seen by one person is seen by all, and nothing fails by the clock.
settings.register_profile("reproducible", derandomize=True, deadline=None)
settings.load_profile("reproducible")
