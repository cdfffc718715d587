"""`python -m transfer_caffe.analysis`."""

import sys

from transfer_caffe.analysis import main

if __name__ == "__main__":
    sys.exit(main())
