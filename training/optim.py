"""The optimisers of `training/engine/optim.py`, by their public names."""

from training.engine.optim import OptimizerName, lr_at, make_optimizer

__all__ = ["OptimizerName", "lr_at", "make_optimizer"]
