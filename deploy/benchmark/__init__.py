"""Benchmark of deployed networks: accuracy, agreement with the reference, latency and cost."""
