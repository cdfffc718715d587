"""Compare ImageNet's image lists with the authors' checksums: runs `transfer_caffe.data_prep.verify`."""

import sys

from transfer_caffe.data_prep.verify import main

if __name__ == "__main__":
    sys.exit(main())
