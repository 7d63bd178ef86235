"""The benchmark file: from YAML to a `Benchmark`, with overrides and a schema."""
