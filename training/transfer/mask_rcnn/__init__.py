"""Mask R-CNN with a feature pyramid, equal to Detectron2's (supplementary A.2.1)."""
