"""Reliability tests of a run with real processes, signals and files: ``python -m training.reliability``."""
