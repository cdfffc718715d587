"""Load weights into a net by running real Caffe, and write those of some layers; a script for pycaffe's Python.

    caffe-python take_over.py net.prototxt base.caffemodel out.npz LAYER [LAYER ...]

The npz holds `LAYER/INDEX` for each blob. Net.copy_from silently skips layers that the file does not have. The blobs
are therefore filled with NaN first; a layer that is still NaN afterwards was not copied.
"""

import os
import sys

import numpy as np


def main(net_path, base_path, out_path, names):
    """Copy the layers; exit with code 1 and one line on standard error if a layer was not copied.

    Caffe ends the process if it rejects the files.
    """
    import caffe

    net = caffe.Net(net_path, caffe.TEST)
    for name in names:
        for blob in net.params[name]:
            blob.data[...] = np.nan
    net.copy_from(base_path)
    blobs = {}
    for name in names:
        for index, blob in enumerate(net.params[name]):
            if np.isnan(blob.data).all():
                sys.exit(f"layer {name} was not copied")
            blobs[f"{name}/{index}"] = blob.data.astype("<f4")
    with open(out_path + ".part", "wb") as file:
        np.savez(file, **blobs)
    os.rename(out_path + ".part", out_path)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
