"""pycaffe over the embedded engine."""
from transfer_caffe.caffe.pycaffe import Net
TRAIN, TEST = 0, 1
