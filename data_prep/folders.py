"""Write image lists from a tree of class folders: runs `transfer_caffe.data_prep.folders`."""

import sys

from transfer_caffe.data_prep.folders import main

if __name__ == "__main__":
    sys.exit(main())
