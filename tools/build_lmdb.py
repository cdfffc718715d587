"""Build an LMDB from an image list, with the flags of convert_imageset: runs `transfer_caffe.tools.build_lmdb`."""

import sys

from transfer_caffe.tools.build_lmdb import main

if __name__ == "__main__":
    sys.exit(main())
