"""Image list to LMDB, with the flags of convert_imageset: `transfer_caffe.tools.build_lmdb` does the work."""

import sys

from transfer_caffe.tools.build_lmdb import main

if __name__ == "__main__":
    sys.exit(main())
