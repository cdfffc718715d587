"""ImageNet's lists compared with the authors' checksums: `transfer_caffe.data_prep.verify` does the work."""

import sys

from transfer_caffe.data_prep.verify import main

if __name__ == "__main__":
    sys.exit(main())
