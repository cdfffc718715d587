"""Derive the man-made and natural groups from WordNet ids: runs `transfer_caffe.data_prep.wordnet`."""

import sys

from transfer_caffe.data_prep.wordnet import main

if __name__ == "__main__":
    sys.exit(main())
