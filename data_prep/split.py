"""Split image lists into two halves of the classes: runs `transfer_caffe.data_prep.split`."""

import sys

from transfer_caffe.data_prep.split import main

if __name__ == "__main__":
    sys.exit(main())
