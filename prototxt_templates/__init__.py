"""Jinja2 templates of the networks and solvers, one folder per architecture, rendered by `transfer_caffe.generate`."""
