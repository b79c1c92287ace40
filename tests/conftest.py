"""Settings of all tests: the same few examples on every run, and no deadline that a busy machine could miss."""

from hypothesis import settings

settings.register_profile("perceiver-vl", max_examples=25, deadline=None, derandomize=True, print_blob=True)
settings.load_profile("perceiver-vl")
