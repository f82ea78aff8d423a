"""How fast the parts of a training are, measured beside what they replace: ``python -m training.benchmark``."""
