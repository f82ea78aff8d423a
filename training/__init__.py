"""Pre-training and evaluation: lives in the checkout, never in the wheel."""
