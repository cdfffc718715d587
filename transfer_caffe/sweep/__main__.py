"""`python -m transfer_caffe.sweep`."""

import sys

from transfer_caffe.sweep import main

if __name__ == "__main__":
    sys.exit(main())
