"""Compute the mean image of an LMDB, as compute_image_mean does: runs `transfer_caffe.tools.compute_mean`."""

import sys

from transfer_caffe.tools.compute_mean import main

if __name__ == "__main__":
    sys.exit(main())
