"""A tiny data set as an LMDB, and a small net on it, for tests that only train with the engine."""

import lmdb
import numpy as np

from transfer_caffe.formats.datum import raw_datum
from transfer_caffe.formats.proto import array_to_blob, write_binary

NET = """
name: "tiny"
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TRAIN }
  transform_param { MIRROR crop_size: CROP mean_file: "mean.binaryproto" }
  data_param { source: "train_lmdb" batch_size: 8 backend: LMDB } }
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TEST }
  transform_param { crop_size: CROP mean_file: "mean.binaryproto" }
  data_param { source: "test_lmdb" batch_size: 5 backend: LMDB } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  param { lr_mult: 1 decay_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
  convolution_param { num_output: 6 kernel_size: 3 stride: 2 pad: 1
    weight_filler { type: "gaussian" std: 0.1 } bias_filler { type: "constant" value: 0.1 } } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1"
  pooling_param { pool: MAX kernel_size: 3 stride: 2 } }
layer { name: "norm1" type: "LRN" bottom: "pool1" top: "norm1" lrn_param { local_size: 5 alpha: 0.01 beta: 0.75 } }
layer { name: "conv2" type: "Convolution" bottom: "norm1" top: "conv2"
  param { lr_mult: 1 decay_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
  convolution_param { num_output: 8 kernel_size: 3 pad: 1 group: 2
    weight_filler { type: "gaussian" std: 0.1 } bias_filler { type: "constant" value: 0.1 } } }
layer { name: "relu2" type: "ReLU" bottom: "conv2" top: "conv2" }
layer { name: "pool2" type: "Pooling" bottom: "conv2" top: "pool2"
  pooling_param { pool: AVE kernel_size: 3 stride: 2 } }
layer { name: "fc3" type: "InnerProduct" bottom: "pool2" top: "fc3"
  param { lr_mult: 1 decay_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
  inner_product_param { num_output: 4 weight_filler { type: "xavier" } } }
DROPOUT
layer { name: "accuracy" type: "Accuracy" bottom: "fc3" bottom: "label" top: "accuracy" include { phase: TEST } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc3" bottom: "label" top: "loss" }
"""
DROPOUT = """layer { name: "drop3" type: "Dropout" bottom: "fc3" top: "fc3" dropout_param { dropout_ratio: 0.2 } }"""

SOLVER = """net: "net.prototxt" test_iter: 4 test_interval: 10 base_lr: 0.05 lr_policy: "step" gamma: 0.1 stepsize: 15
momentum: 0.9 weight_decay: 0.0005 display: 1 max_iter: 20 snapshot: 5 snapshot_prefix: "snap/tiny"
solver_mode: CPU random_seed: 7
"""


def write_lmdb(path, images, labels):
    """Write an LMDB with Caffe's keys; images are (num, height, width, 3) uint8 in BGR."""
    with lmdb.open(str(path), map_size=1 << 26) as env, env.begin(write=True) as transaction:
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            transaction.put(f"{index:08d}_{index}.png".encode(), raw_datum(image, int(label)))


def tiny_images(count, seed):
    """Return 12x12 images of four classes, distinguished by the position and channel of a bright square, and labels."""
    draw = np.random.RandomState(seed)
    labels = np.arange(count) * 3 % 4
    images = draw.randint(0, 120, (count, 12, 12, 3))
    for index, label in enumerate(labels):
        row, column = divmod(int(label), 2)
        images[index, row * 6 : row * 6 + 6, column * 6 : column * 6 + 6, int(label) % 3] += 100
    return images.astype(np.uint8), labels


def net_text(random=True):
    """Return the net with random crops, mirroring and dropout, or without anything random."""
    mirror, crop, dropout = ("mirror: true", "10", DROPOUT) if random else ("", "0", "")
    return NET.replace("MIRROR", mirror).replace("CROP", crop).replace("DROPOUT", dropout)


def write_tiny(folder):
    """Write databases, mean image, net.prototxt and solver.prototxt to ``folder``, which must be the current folder."""
    write_lmdb("train_lmdb", *tiny_images(60, 1))
    write_lmdb("test_lmdb", *tiny_images(20, 2))
    write_binary("mean.binaryproto", array_to_blob(np.full((1, 3, 12, 12), 70, np.float32)))
    (folder / "net.prototxt").write_text(net_text())
    (folder / "solver.prototxt").write_text(SOLVER)
