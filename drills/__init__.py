"""Drills: break the appliance under load, on a real host, and look for everything that it had acknowledged."""
