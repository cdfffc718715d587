"""Old prototxt, weights and solvers in today's form: `transfer_caffe.tools.upgrade_proto` does the work."""

import sys

from transfer_caffe.tools.upgrade_proto import main

if __name__ == "__main__":
    sys.exit(main())
