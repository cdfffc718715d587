"""ImageNet's archives to image lists: `transfer_caffe.data_prep.ilsvrc` does the work."""

import sys

from transfer_caffe.data_prep.ilsvrc import main

if __name__ == "__main__":
    sys.exit(main())
