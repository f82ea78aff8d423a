"""Publishing weights: the published folder, its model card, upload and verification."""

__all__: list[str] = []
