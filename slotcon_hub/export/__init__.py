"""Trained models in the formats that other libraries load."""
