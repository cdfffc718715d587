"""Compute one training iteration: step by step on a CPU, in several processes, or as a CUDA graph."""
