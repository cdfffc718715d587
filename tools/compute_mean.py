"""Mean image of an LMDB, as compute_image_mean: `transfer_caffe.tools.compute_mean` does the work."""

import sys

from transfer_caffe.tools.compute_mean import main

if __name__ == "__main__":
    sys.exit(main())
