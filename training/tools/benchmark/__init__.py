"""Benchmarks of the parts of a training against their alternatives: ``python -m training.benchmark``."""
