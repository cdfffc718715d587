"""A tree of class folders to image lists: `transfer_caffe.data_prep.folders` does the work."""

import sys

from transfer_caffe.data_prep.folders import main

if __name__ == "__main__":
    sys.exit(main())
