"""The benchmark YAML: parsing, overrides, protocols and the JSON Schema."""
