"""The operator's command. Each command is a module of its own that is imported only when it runs."""

__version__ = "0.1.0"
