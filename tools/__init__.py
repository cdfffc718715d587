"""Conversion of image lists to the databases and mean images that Caffe reads, with the flags of Caffe's own tools."""

import transfer_caffe  # noqa: F401 - reports missing packages
