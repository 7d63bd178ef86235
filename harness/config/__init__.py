"""From a benchmark YAML to a `Benchmark`."""
