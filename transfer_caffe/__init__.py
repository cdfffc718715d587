"""How transferable are a network's features? The experiment of Yosinski et al. (NIPS 2014) on Caffe's files."""

import importlib.util
import sys

__version__ = "0.1.0"

# Another Python than that of .venv would end in a traceback. While `python -m` looks for a command, argv[0] is "-m".
if sys.argv[:1] == ["-m"]:
    for _package in ("numpy", "lmdb", "cv2", "google", "yaml", "torch"):
        if importlib.util.find_spec(_package) is None:
            _remedy = "run `make setup`, then `. .venv/bin/activate`"
            print(f"error: the package {_package} is not installed for {sys.executable}; {_remedy}", file=sys.stderr)
            sys.exit(2)
