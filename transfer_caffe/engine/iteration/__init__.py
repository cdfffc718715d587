"""How one training iteration is computed: step by step on a CPU, in several processes, or as a CUDA graph."""
