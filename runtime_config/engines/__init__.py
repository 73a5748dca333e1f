"""One module per engine, each pure: the text of its configuration file in, the new text out."""

RUNTIME = "vgpu"  # our name in each of them
LAUNCHER_NAME = "vgpu-runtime"
