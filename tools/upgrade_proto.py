"""Upgrade old prototxts, weights and solvers to the current format: runs `transfer_caffe.tools.upgrade_proto`."""

import sys

from transfer_caffe.tools.upgrade_proto import main

if __name__ == "__main__":
    sys.exit(main())
