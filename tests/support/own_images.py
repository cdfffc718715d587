"""A study in miniature: three classes of images that colour and place tell apart, a net, and weights for it."""

from pathlib import Path

import cv2
import numpy as np

from transfer_caffe.engine import Net
from transfer_caffe.formats.proto import write_binary

NET = """name: "pretrained" input: "data" input_shape { dim: 1 dim: 3 dim: 24 dim: 24 }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1" convolution_param { num_output: 6 kernel_size: 5
  stride: 2 weight_filler { type: "xavier" } } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "conv2" type: "Convolution" bottom: "conv1" top: "conv2" convolution_param { num_output: 8 kernel_size: 3
  weight_filler { type: "xavier" } } }
layer { name: "relu2" type: "ReLU" bottom: "conv2" top: "conv2" }
layer { name: "fc" type: "InnerProduct" bottom: "conv2" top: "fc" inner_product_param { num_output: 1000
  weight_filler { type: "xavier" } } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""


def make_images(folder: Path, per_class: int = 10) -> Path:
    """Write the images to `my photos/CLASS`, net.prototxt and weights.caffemodel; return the images' folder."""
    draw = np.random.RandomState(0)
    for label, name in enumerate(("cat", "dog", "old car")):
        (folder / "my photos" / name).mkdir(parents=True)
        for number in range(per_class):
            image = draw.randint(0, 100, (40, 30, 3))
            image[8 * label : 8 * label + 12, :, label] += 120
            assert cv2.imwrite(str(folder / f"my photos/{name}/{number}.png"), image.astype(np.uint8))
    write_net(folder, NET)
    return folder / "my photos"


def write_net(folder: Path, text: str) -> None:
    """Write net.prototxt, and weights.caffemodel with weights that fit it."""
    (folder / "net.prototxt").write_text(text)
    write_binary(folder / "weights.caffemodel", Net.load(folder / "net.prototxt", seed=5).to_proto())
