"""Semantic segmentation by a fully-convolutional network, as MMSegmentation trains it (supplementary A.2.2)."""
