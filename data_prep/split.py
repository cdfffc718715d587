"""Image lists cut into halves: `transfer_caffe.data_prep.split` does the work."""

import sys

from transfer_caffe.data_prep.split import main

if __name__ == "__main__":
    sys.exit(main())
