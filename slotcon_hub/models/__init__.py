"""The networks; registering models with timm, loading, saving and importing them by name."""
