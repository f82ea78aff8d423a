"""What is trained on from pre-trained backbones."""
