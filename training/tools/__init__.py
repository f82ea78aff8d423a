"""Tools: benchmarks, reliability, communication, reports."""
