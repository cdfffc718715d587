"""Scripts for the Python of real Caffe (3.6 and later): they import pycaffe, numpy and the standard library only."""
