"""The start path of a container: launcher -> shim -> hook. Standard library only (ARCHITECTURE.md, import budget)."""
