"""The networks, and models by name: registered with timm, loaded, saved, imported."""
