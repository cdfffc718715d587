"""`python -m transfer_caffe.figures`."""

import sys

from transfer_caffe.figures import main

if __name__ == "__main__":
    sys.exit(main())
