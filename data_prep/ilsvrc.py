"""Write image lists from ImageNet's archives: runs `transfer_caffe.data_prep.ilsvrc`."""

import sys

from transfer_caffe.data_prep.ilsvrc import main

if __name__ == "__main__":
    sys.exit(main())
