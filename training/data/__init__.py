"""Images and masks to train and evaluate on, from folders, tables and streams; their views."""
