"""Which images, which classes, which half: image lists and class maps."""

import transfer_caffe  # noqa: F401 - says so, where packages are missing
