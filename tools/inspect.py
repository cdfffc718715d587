"""What is in a database: `transfer_caffe.tools.inspect` does the work."""

import sys

from transfer_caffe.tools.inspect import main

if __name__ == "__main__":
    sys.exit(main())
