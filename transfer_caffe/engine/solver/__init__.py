"""Caffe's solvers: settings, learning rates, updates, the training loop, snapshots."""
