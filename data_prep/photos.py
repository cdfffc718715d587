"""The embedded dataset: `transfer_caffe.data_prep.photos` does the work."""

import sys

from transfer_caffe.data_prep.photos import main

if __name__ == "__main__":
    sys.exit(main())
