"""One module per engine, each pure: the text of its configuration file in, the new text out."""
