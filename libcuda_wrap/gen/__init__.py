"""Writes generated/ and docs/entry-points.md from the tables of entry points."""
