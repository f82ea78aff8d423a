"""Mask R-CNN on a feature pyramid, as Detectron2 defines and trains it (the paper's A.2.1)."""
