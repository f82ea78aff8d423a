"""Evaluation protocols on frozen models with labelled data."""
