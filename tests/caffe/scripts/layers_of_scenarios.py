"""Python layers of the scenarios, in the style of FCN's and py-faster-rcnn's."""

import caffe
import numpy as np


class Segments(caffe.Layer):
    """Images and their segmentations, one at a time."""

    def setup(self, bottom, top):
        params = eval(self.param_str)
        if len(bottom) != 0 or len(top) != 2:
            raise Exception("Do not define a bottom; need two tops: data and label.")
        self.random = np.random.RandomState(params["seed"])

    def reshape(self, bottom, top):
        size = self.random.randint(8, 13, 2)
        self.data = self.random.rand(3, *size).astype(np.float32)
        self.label = self.random.randint(0, 3, size)[np.newaxis].astype(np.uint8)
        self.label[0, 0] = 255
        top[0].reshape(1, *self.data.shape)
        top[1].reshape(1, *self.label.shape)

    def forward(self, bottom, top):
        top[0].data[...] = self.data
        top[1].data[...] = self.label

    def backward(self, top, propagate_down, bottom):
        pass


class Images(caffe.Layer):
    """Images of changing size; each forward pass reshapes the tops."""

    def set_sizes(self, sizes):
        self.sizes = sizes

    def setup(self, bottom, top):
        self.place, self.sizes = 0, [(8, 8)]
        top[0].reshape(1, 3, 8, 8)
        top[1].reshape(1, 3)
        top[2].reshape(1, 4)

    def reshape(self, bottom, top):
        """The shapes are set in forward."""

    def forward(self, bottom, top):
        size = self.sizes[self.place % len(self.sizes)]
        self.place += 1
        random = np.random.RandomState(self.place)
        blobs = {0: random.rand(1, 3, *size), 1: np.array([[*size, 1.5]]), 2: random.rand(2, 4) * min(size)}
        for index, blob in blobs.items():
            top[index].reshape(*blob.shape)
            top[index].data[...] = blob.astype(np.float32, copy=False)

    def backward(self, top, propagate_down, bottom):
        pass


class Proposals(caffe.Layer):
    """The positions with the largest scores."""

    def setup(self, bottom, top):
        self.count = int(self.param_str_) if hasattr(self, "param_str_") else int(self.param_str)
        top[0].reshape(1, 5)

    def reshape(self, bottom, top):
        pass

    def forward(self, bottom, top):
        scores = bottom[0].data[0, 1]
        count = self.count + (1 if self.phase == 0 else 0)
        best = np.argsort(-scores.ravel(), kind="stable")[:count]
        rows, columns = np.unravel_index(best, scores.shape)
        rois = np.stack([np.zeros(count), columns, rows, columns + 2, rows + bottom[1].data[0, 2]], 1)
        top[0].reshape(*rois.shape)
        top[0].data[...] = rois

    def backward(self, top, propagate_down, bottom):
        pass


class Targets(caffe.Layer):
    """A label for each position: 1 in boxes, 0 outside, -1 (ignored) in the first row."""

    def setup(self, bottom, top):
        self.reshape(bottom, top)

    def reshape(self, bottom, top):
        top[0].reshape(bottom[0].num, 1, bottom[0].height, bottom[0].width)

    def forward(self, bottom, top):
        top[0].data[...] = 0
        for x, y, width, height in bottom[1].data:
            top[0].data[:, :, int(y / 2) : int(y / 2 + height), int(x / 2) : int(x / 2 + width)] = 1
        top[0].data[:, :, 0] = -1

    def backward(self, top, propagate_down, bottom):
        pass


class Scale(caffe.Layer):
    """Multiplication by a learned number."""

    def setup(self, bottom, top):
        self.blobs.add_blob(1)
        self.blobs[0].data[...] = 0.5

    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].data.shape)

    def forward(self, bottom, top):
        top[0].data[...] = self.blobs[0].data[0] * bottom[0].data

    def backward(self, top, propagate_down, bottom):
        self.blobs[0].diff[...] += (top[0].diff * bottom[0].data).sum()
        if propagate_down[0]:
            bottom[0].diff[...] = self.blobs[0].data[0] * top[0].diff


class HalfSquare(caffe.Layer):
    """Half the sum of squares, a loss."""

    def setup(self, bottom, top):
        if len(bottom) != 1:
            raise Exception("Need one input.")

    def reshape(self, bottom, top):
        self.diff = np.zeros_like(bottom[0].data, dtype=np.float32)
        top[0].reshape(1)

    def forward(self, bottom, top):
        self.diff[...] = bottom[0].data
        top[0].data[...] = np.sum(self.diff**2) / bottom[0].num / 2.0

    def backward(self, top, propagate_down, bottom):
        bottom[0].diff[...] = self.diff / bottom[0].num * top[0].diff[0]
