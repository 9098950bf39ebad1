"""How many examples: a fixed sample among the tests, and 2,000 new ones (33 tests of 61) in ``nox -s fuzz``."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings

COMMON = {
    "deadline": None,
    "database": None,
    # The fixtures only name a device and seed torch; examples are slow in Triton's interpreter.
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
}
# Making a failing example smaller takes minutes: ``nox -s fuzz`` does it.
AS_DRAWN = (Phase.explicit, Phase.generate)
settings.register_profile("sample", derandomize=True, max_examples=8, phases=AS_DRAWN, **COMMON)
settings.register_profile("fuzz", max_examples=61, print_blob=True, **COMMON)
settings.load_profile("sample")
