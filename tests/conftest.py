"""Settings of every test: property tests have no deadline, since a shared machine may be busy at any moment."""

from hypothesis import settings

settings.register_profile("llamamath", deadline=None)
settings.load_profile("llamamath")
