"""Visual concepts of prototypes: segments, their ranking, and HTML pages."""
