"""What a run survives, tried out with real processes, signals and files: ``python -m training.reliability``."""
