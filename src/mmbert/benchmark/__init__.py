"""Benchmarks against the programs that people would use instead: python -m mmbert.benchmark step|head|data|page."""
