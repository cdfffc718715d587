"""Net surgery, filters, features and a layer in Python, with pycaffe's interface (docs/pycaffe.md).

    python -m transfer_caffe.caffe docs/pycaffe_example.py [FOLDER]

The net finds edges in an image: a convolution whose filters are set by hand, and a layer written in Python that adds
up the squares of its outputs. The script then replaces the net's classifier by a convolution, so that it can slide over
a larger image, and trains the classifier. It writes its files and `edges.png` to FOLDER (default: the current one).
"""

import os
import sys

import caffe
import numpy as np
from caffe import layers as L
from caffe import params as P


class Energy(caffe.Layer):
    """The sum of squares over channels, times the number in param_str."""

    def setup(self, bottom, top):
        self.factor = float(self.param_str)

    def reshape(self, bottom, top):
        num, _, height, width = bottom[0].data.shape
        top[0].reshape(num, 1, height, width)

    def forward(self, bottom, top):
        top[0].data[...] = self.factor * (bottom[0].data ** 2).sum(1, keepdims=True)

    def backward(self, top, propagate_down, bottom):
        if propagate_down[0]:
            bottom[0].diff[...] = 2 * self.factor * bottom[0].data * top[0].diff


def edge_net(fully_convolutional=False):
    """Return the net as a specification."""
    n = caffe.NetSpec()
    n.data = L.Input(shape=dict(dim=[8, 1, 18, 18]))
    n.label = L.Input(shape=dict(dim=[8]))
    n.edges = L.Convolution(n.data, kernel_size=3, num_output=2, bias_term=False, param=[dict(lr_mult=0)])
    n.energy = L.Python(n.edges, module="pycaffe_example", layer="Energy", param_str="0.1")
    n.pool = L.Pooling(n.energy, pool=P.Pooling.AVE, kernel_size=4, stride=4)
    if fully_convolutional:
        n.score = L.Convolution(n.pool, name="score_conv", num_output=2, kernel_size=4)
        n.silence = L.Silence(n.label, ntop=0)
    else:
        n.score = L.InnerProduct(n.pool, num_output=2, weight_filler=dict(type="xavier"))
        n.loss = L.SoftmaxWithLoss(n.score, n.label)
        n.accuracy = L.Accuracy(n.score, n.label)
    return n.to_proto()


def images(count, size=18, seed=0):
    """Return images and labels: 0 for smooth ones, 1 for those with a square in them."""
    random = np.random.RandomState(seed)
    labels = random.randint(0, 2, count)
    batch = np.repeat(random.rand(count, 1, 1, 1), size, 2) + np.linspace(0, 0.3, size)
    for image, label in zip(batch, labels, strict=True):
        if label:
            row, column = random.randint(2, size - 9, 2)
            image[0, row : row + 6, column : column + 6] += 0.7
    return batch, labels


def main(folder):
    """Run the example."""
    os.makedirs(folder, exist_ok=True)
    os.chdir(folder)
    with open("edges.prototxt", "w") as file:
        file.write(str(edge_net()))
    with open("solver.prototxt", "w") as file:
        file.write('net: "edges.prototxt" base_lr: 0.5 lr_policy: "fixed" momentum: 0.9 max_iter: 100 random_seed: 1\n')
        file.write('snapshot_prefix: "edges" snapshot_after_train: false')

    # filters by hand: views of the net's weights can be written
    solver = caffe.SGDSolver("solver.prototxt")
    net = solver.net
    sobel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    net.params["edges"][0].data[...] = np.stack([sobel, sobel.T])[:, None]

    # features, and the gradient with respect to the image
    net.blobs["data"].data[...], net.blobs["label"].data[...] = images(8)
    net.forward()
    features = net.blobs["energy"].data.copy()
    print(
        "energy of smooth images and of squares: {:.2f} {:.2f}".format(
            *(features[net.blobs["label"].data == label].mean() for label in (0, 1))
        )
    )

    # training: the filters are frozen, the classifier learns
    for step in range(60):
        net.blobs["data"].data[...], net.blobs["label"].data[...] = images(8, seed=step)
        solver.step(1)
    right = 0.0
    for batch in range(10):
        data, labels = images(8, seed=1000 + batch)
        right += float(net.forward(data=data, label=labels)["accuracy"]) / 10
    print(f"accuracy: {right:.2f}")
    net.save("edges.caffemodel")

    # surgery: the classifier as a convolution, which gives a map of scores for a larger image
    with open("map.prototxt", "w") as file:
        file.write(str(edge_net(fully_convolutional=True)))
    full = caffe.Net("map.prototxt", "edges.caffemodel", caffe.TEST)
    for target, source in zip(full.params["score_conv"], net.params["score"], strict=True):
        target.data.flat = source.data.flat
    large, _ = images(1, size=66, seed=5)
    full.blobs["data"].reshape(*large.shape)
    full.reshape()
    full.blobs["data"].data[...] = large
    full.forward()
    scores = full.blobs["score"].data
    print("map of scores:", scores.shape)
    save_picture("edges.png", large[0, 0], full.blobs["energy"].data[0, 0])
    return right, scores


def save_picture(path, *planes):
    """Write arrays as pictures side by side."""
    import cv2

    scaled = [255 * (plane - plane.min()) / max(np.ptp(plane), 1e-9) for plane in planes]
    height = min(plane.shape[0] for plane in scaled)
    cv2.imwrite(path, np.hstack([plane[:height] for plane in scaled]).astype(np.uint8))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else ".")
