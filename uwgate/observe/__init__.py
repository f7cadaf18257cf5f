"""Reads the counters and serves them: stats JSON, Prometheus text, request log."""
