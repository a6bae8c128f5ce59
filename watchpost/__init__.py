"""Watchpost's controller-side tools: artifacts, secrets, test hosts and verification."""

__version__ = "0.1.0"
