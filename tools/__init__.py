"""From image lists to what Caffe reads, with the flags of Caffe's own tools."""

import transfer_caffe  # noqa: F401 - says so, where packages are missing
