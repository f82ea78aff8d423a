"""The page on which one tries prototype models: groups of an image, their prototypes, PCA, models side by side."""
