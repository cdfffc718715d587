"""`python -m transfer_caffe.report`."""

import sys

from transfer_caffe.report import main

if __name__ == "__main__":
    sys.exit(main())
