"""Create the demo's dataset of photographs: runs `transfer_caffe.data_prep.photos`."""

import sys

from transfer_caffe.data_prep.photos import main

if __name__ == "__main__":
    sys.exit(main())
