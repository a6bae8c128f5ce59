"""What a delivery pipeline runs after a deploy: traffic, the gate, the report, and all stages in order."""
