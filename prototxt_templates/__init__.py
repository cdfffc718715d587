"""Jinja2 templates of the networks and solvers, one folder an architecture: `transfer_caffe.generate` fills them."""
