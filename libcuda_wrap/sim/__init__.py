"""The simulated GPU: a libcuda and a libnvidia-ml of our own, and the state file they share. docs/simulated-gpu.md."""
