"""Scripts for real Caffe's Python (3.6 and later); they only import pycaffe, NumPy and the standard library."""
