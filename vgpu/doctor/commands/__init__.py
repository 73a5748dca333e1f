"""The sub-commands of vgpu doctor. A module here with `add_to(app: typer.Typer)` is one; cli_doctor.py finds it.

They are imported whenever `vgpu` starts: whatever is slow to load is imported inside the command.
"""
