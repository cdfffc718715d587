"""Upgrade the old files in tests/golden/upgrade by running real Caffe, so that the tests do not need it.

    python tests/golden/make_upgrade.py

NAME.prototxt, written manually, is upgraded to NAME.upgraded.prototxt: with upgrade_solver_proto_text if NAME begins
with `solver`, with upgrade_net_proto_binary if it ends with `weights` (both files are stored as text; the tool gets a
.caffemodel), and with upgrade_net_proto_text otherwise.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

from support.old_nets import KINDS, ask_real_caffe, kind_of  # noqa: E402

from transfer_caffe.formats.proto import read_binary, read_text, to_text, write_binary  # noqa: E402
from transfer_caffe.formats.proto.caffe_pb2 import NetParameter  # noqa: E402
from transfer_caffe.real_caffe import programs as real_caffe  # noqa: E402


def ask(path: Path, folder: Path) -> str:
    """Upgrade one of the files with real Caffe and return the result as text."""
    kind = kind_of(path)
    old, new = path, folder / "new"
    if kind == "net_binary":
        old = folder / "old"
        write_binary(old, read_text(path, NetParameter()))
    done = ask_real_caffe(kind, old, new)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{path}: {done.stderr}")
    return to_text(read_binary(new, NetParameter())) if kind == "net_binary" else new.read_text()


def main() -> None:
    """Write all upgraded files."""
    if real_caffe.program(KINDS["net_text"][0]) is None:
        raise SystemExit("there is no real Caffe: set CAFFE, or add it to the PATH")
    for path in sorted((HERE / "upgrade").glob("*.prototxt")):
        if not path.name.endswith(".upgraded.prototxt"):
            with tempfile.TemporaryDirectory() as folder:
                path.with_suffix(".upgraded.prototxt").write_text(ask(path, Path(folder)))


if __name__ == "__main__":
    main()
