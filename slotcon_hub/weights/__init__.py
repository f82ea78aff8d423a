"""Pretrained weights: their table, the local store, the Hub, and the reader of untrusted files."""
