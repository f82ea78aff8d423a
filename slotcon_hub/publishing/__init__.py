"""Weights made public: the folder that is published, its card, what checks it, and the way to the Hub and back."""

__all__: list[str] = []
