"""How transferable are a network's features? The experiment of Yosinski et al. (NIPS 2014) on Caffe's files."""

__version__ = "0.1.0"
