"""What the benchmarks share: servers as processes, an upstream, a load generator, and the report."""
