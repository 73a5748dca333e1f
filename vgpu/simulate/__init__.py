"""vgpu simulate: what a placement policy would do with a cluster and a trace. docs/simulation.md has the model."""
