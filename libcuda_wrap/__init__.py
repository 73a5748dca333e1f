"""The wrapper in front of libcuda.so.1 and libnvidia-ml.so.1, its table of entry points, and the simulated driver."""
