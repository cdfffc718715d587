"""Find real Caffe on this machine and run it."""
