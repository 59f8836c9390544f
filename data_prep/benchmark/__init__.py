"""Benchmarks of data preparation."""
