"""From image lists to what Caffe reads, with the flags of Caffe's own tools."""
