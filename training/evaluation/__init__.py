"""Protocols with labels; they know ``slotcon_hub`` and nothing else of ``training``."""
