"""Benchmarks against the programs that people would use instead."""
