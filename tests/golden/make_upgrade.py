"""Let real Caffe upgrade the old files of tests/golden/upgrade, once: the tests then need no Caffe.

    python tests/golden/make_upgrade.py

NAME.prototxt, written by hand, gives NAME.upgraded.prototxt: by upgrade_solver_proto_text where NAME begins with
`solver`, by upgrade_net_proto_binary where it ends with `weights` (both forms are written as text here, the tool sees
a .caffemodel), by upgrade_net_proto_text for all others.
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
    """What real Caffe makes of one of the files, as text."""
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
        raise SystemExit("no real Caffe here: set CAFFE, or put it on the PATH")
    for path in sorted((HERE / "upgrade").glob("*.prototxt")):
        if not path.name.endswith(".upgraded.prototxt"):
            with tempfile.TemporaryDirectory() as folder:
                path.with_suffix(".upgraded.prototxt").write_text(ask(path, Path(folder)))


if __name__ == "__main__":
    main()
