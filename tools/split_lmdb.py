"""Extract a split's LMDB, or a view, from the LMDB of all images: runs `transfer_caffe.tools.split_lmdb`."""

import sys

from transfer_caffe.tools.split_lmdb import main

if __name__ == "__main__":
    sys.exit(main())
