"""Caffe's training engine on PyTorch: the command line, files and log lines of `caffe`."""
