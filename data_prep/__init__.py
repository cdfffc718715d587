"""Preparation of image lists and class files: the images, their classes, and the halves of a split."""

import transfer_caffe  # noqa: F401 - reports missing packages
