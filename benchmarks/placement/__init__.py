"""Placement policies on generated traces: make bench-placement. README.md has the method."""
