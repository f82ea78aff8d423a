"""A resumable run of any task: launch, checkpoints, metrics, signals."""
