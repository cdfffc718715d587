"""A split's LMDB, or a view, from the LMDB of all images: `transfer_caffe.tools.split_lmdb` does the work."""

import sys

from transfer_caffe.tools.split_lmdb import main

if __name__ == "__main__":
    sys.exit(main())
