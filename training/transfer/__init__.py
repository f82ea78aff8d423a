"""Transfer of pre-trained backbones to detection and semantic segmentation."""
