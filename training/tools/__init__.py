"""Commands beside training: benchmarks, reliability, reports."""
