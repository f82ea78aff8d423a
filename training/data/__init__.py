"""Images, masks and labels from folders, tables and streams; crops, views and colour augmentation."""
