"""Show the content of an image database: runs `transfer_caffe.tools.inspect`."""

import sys

from transfer_caffe.tools.inspect import main

if __name__ == "__main__":
    sys.exit(main())
