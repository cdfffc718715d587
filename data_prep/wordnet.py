"""Man-made/natural groups from WordNet ids: `transfer_caffe.data_prep.wordnet` does the work."""

import sys

from transfer_caffe.data_prep.wordnet import main

if __name__ == "__main__":
    sys.exit(main())
