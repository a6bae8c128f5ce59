"""Service level objectives: read from one file, turned into Prometheus's rules."""
