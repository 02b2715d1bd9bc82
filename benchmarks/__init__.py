"""Benchmarks of the gateway: ``python -m benchmarks``, see README.md beside this file."""
