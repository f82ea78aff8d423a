"""What prototypes stand for: segments, their ranking, and pages to look at."""
