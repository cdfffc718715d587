"""Real Caffe: where it is on this machine, and what is asked of it."""
