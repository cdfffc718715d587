"""What typical scripts do with pycaffe, in miniature: run by real pycaffe and by the embedded engine, and compared.

    caffe-python scenarios.py NAME FOLDER OUT.npz
    python -m transfer_caffe.caffe scenarios.py NAME FOLDER OUT.npz

FOLDER is where files are read (data.h5, image.png) and written. OUT has the arrays that the scenario returns. Python
3.6 and NumPy are enough.
"""

import os
import sys

import caffe
import caffe.coord_map
import numpy as np
from caffe import layers as L
from caffe import params as P


def write(name, text):
    with open(name, "w") as file:
        file.write(str(text))
    return name


def randomize(net, seed=0, scale=1.0):
    """Give all weights values that do not depend on a Caffe's random numbers."""
    random = np.random.RandomState(seed)
    for blobs in net.params.values():
        for blob in blobs:
            fan_in = max(1, np.prod(blob.data.shape[1:]))
            blob.data[...] = random.randn(*blob.data.shape) * scale * np.sqrt(1.0 / fan_in)


def everything(net, prefix=""):
    out = {prefix + "names": np.array(list(net.blobs)), prefix + "layers": np.array(list(net._layer_names))}
    for name, blob in net.blobs.items():
        out[prefix + "data/" + name], out[prefix + "diff/" + name] = blob.data.copy(), blob.diff.copy()
    for name, blobs in net.params.items():
        for index, blob in enumerate(blobs):
            out[f"{prefix}weights/{name}/{index}"] = blob.data.copy()
            out[f"{prefix}grad/{name}/{index}"] = blob.diff.copy()
    return out


def small_net(data, classes=5):
    n = caffe.NetSpec()
    n.data = L.Input(shape=dict(dim=data))
    n.conv1 = L.Convolution(n.data, kernel_size=5, stride=2, num_output=8)
    n.relu1 = L.ReLU(n.conv1, in_place=True)
    n.pool1 = L.Pooling(n.conv1, pool=P.Pooling.MAX, kernel_size=3, stride=2)
    n.norm1 = L.LRN(n.pool1, local_size=5, alpha=1e-2, beta=0.75)
    n.conv2 = L.Convolution(n.norm1, kernel_size=3, pad=1, group=2, num_output=8)
    n.relu2 = L.ReLU(n.conv2, in_place=True)
    n.fc3 = L.InnerProduct(n.conv2, num_output=classes)
    n.prob = L.Softmax(n.fc3)
    return n


def classification():
    """The notebook 00-classification: preprocessing, batches, features, filters, another batch size."""
    write("deploy.prototxt", small_net([10, 3, 32, 32]).to_proto())
    net = caffe.Net("deploy.prototxt", caffe.TEST)
    randomize(net)
    mean = np.linspace(90, 120, 3 * 36 * 36).reshape(3, 36, 36)
    transformer = caffe.io.Transformer({"data": net.blobs["data"].data.shape})
    transformer.set_transpose("data", (2, 0, 1))
    transformer.set_mean("data", mean.mean(1).mean(1))
    transformer.set_raw_scale("data", 255)
    transformer.set_channel_swap("data", (2, 1, 0))
    net.blobs["data"].reshape(4, 3, 32, 32)
    image = caffe.io.load_image("image.png")
    prepared = transformer.preprocess("data", image)
    net.blobs["data"].data[...] = prepared
    prob = net.forward()["prob"].copy()
    out = everything(net, "first/")
    net.forward(start="conv2", end="fc3")
    whole = caffe.io.Transformer({"data": (1, 3, 32, 32)})
    whole.set_transpose("data", (2, 0, 1))
    whole.set_mean("data", mean)
    out.update(prob=prob, back=transformer.deprocess("data", prepared), image=image, whole=whole.mean["data"])
    out["bigger"] = caffe.io.resize_image(image, (70, 64))
    out["smaller"] = caffe.io.resize_image(image, (17, 21))
    out["gray"] = caffe.io.resize_image(image[:, :, :1], (50, 20))
    out["other"] = caffe.io.resize_image(np.concatenate([image, image], 2), (30, 31))
    net.save("deploy.caffemodel")
    classifier = caffe.Classifier(
        "deploy.prototxt",
        "deploy.caffemodel",
        image_dims=(40, 40),
        mean=mean.mean(1).mean(1),
        raw_scale=255,
        channel_swap=(2, 1, 0),
    )
    out["ten"], out["one"] = classifier.predict([image, image[::-1]]), classifier.predict([image], oversample=False)
    return out


def detection():
    """The notebook detection: windows with context."""
    write("detect.prototxt", small_net([3, 3, 32, 32]).to_proto())
    net = caffe.Net("detect.prototxt", caffe.TEST)
    randomize(net)
    net.save("detect.caffemodel")
    settings = dict(mean=np.array([104.0, 117.0, 123.0]), raw_scale=255, channel_swap=(2, 1, 0))
    detector = caffe.Detector("detect.prototxt", "detect.caffemodel", **settings)
    windows = [np.array(window) for window in ((2, 3, 30, 40), (0, 0, 20, 22), (10, 12, 47, 59), (5, 5, 25, 25))]
    found = detector.detect_windows([("image.png", windows)])
    return {"rows": np.array([each["prediction"] for each in found])}


def lenet_spec(source):
    n = caffe.NetSpec()
    n.data, n.label = L.HDF5Data(source=source, batch_size=16, ntop=2)
    n.conv1 = L.Convolution(n.data, kernel_size=5, num_output=6, weight_filler=dict(type="xavier"))
    n.pool1 = L.Pooling(n.conv1, kernel_size=2, stride=2, pool=P.Pooling.MAX)
    n.fc1 = L.InnerProduct(n.pool1, num_output=20, weight_filler=dict(type="xavier"))
    n.relu1 = L.ReLU(n.fc1, in_place=True)
    n.score = L.InnerProduct(n.relu1, num_output=4, weight_filler=dict(type="xavier"))
    n.loss = L.SoftmaxWithLoss(n.score, n.label)
    n.acc = L.Accuracy(n.score, n.label)
    return n.to_proto()


SOLVER = """net: "{net}" test_iter: 2 test_interval: 5 base_lr: 0.05 lr_policy: "step" gamma: 0.5 stepsize: 8
weight_decay: 0.001 max_iter: 20 display: 0 snapshot_prefix: "{prefix}" snapshot_after_train: false random_seed: 3
{more}"""


def learning(kind="SGDSolver", more="momentum: 0.9"):
    """The notebook 01-learning-lenet: a loop of one's own over solver.step(1), with tests."""
    write("train.prototxt", lenet_spec("list.txt"))
    write("solver.prototxt", SOLVER.format(net="train.prototxt", prefix="lenet", more=more))
    solver = getattr(caffe, kind)("solver.prototxt")
    randomize(solver.net)
    solver.net.forward()
    solver.test_nets[0].forward()
    losses, right = [], []
    for _ in range(12):
        solver.step(1)
        losses.append(float(solver.net.blobs["loss"].data))
        solver.test_nets[0].forward(start="conv1")
        right.append(solver.test_nets[0].blobs["score"].data.copy())
    out = everything(solver.net)
    out.update(losses=losses, right=np.array(right), iter=solver.iter)
    return out


def adam():
    return learning("AdamSolver", "momentum: 0.9 momentum2: 0.99 delta: 1e-4")


def nesterov():
    return learning("NesterovSolver", "momentum: 0.9 clip_gradients: 0.5")


def adagrad():
    return learning("AdaGradSolver", "delta: 1e-4 iter_size: 2")


def rmsprop():
    return learning("RMSPropSolver", "rms_decay: 0.9 delta: 0.1")  # with 1e-3, rounding alone moves real Caffe by 2e-3


def adadelta():
    return learning("AdaDeltaSolver", "momentum: 0.9 delta: 1e-6")


def callbacks():
    """Callbacks of nets and solvers, solve, apply_update, and restore."""
    write("train.prototxt", lenet_spec("list.txt"))
    write("solver.prototxt", SOLVER.format(net="train.prototxt", prefix="calls", more="momentum: 0.9"))
    solver = caffe.get_solver("solver.prototxt")
    randomize(solver.net)
    calls = []
    solver.net.before_forward(lambda layer: calls.append(layer))
    solver.net.after_forward(lambda layer: calls.append(100 + layer))
    solver.net.before_backward(lambda layer: calls.append(200 + layer))
    solver.net.after_backward(lambda layer: calls.append(300 + layer))
    solver.add_callback(lambda: calls.append(1000), lambda: calls.append(1001))
    solver.step(2)
    solver.net.params["fc1"][0].diff[...] = 0.25
    solver.apply_update()
    out = everything(solver.net)
    out["calls"] = np.array(calls)
    solver.solve()
    out["iter"] = solver.iter
    out["max_iter"] = solver.param.max_iter
    return out


def logreg():
    """The notebook brewing-logreg: two nets on HDF5 data, solve, accuracies of the test net."""

    def logreg_net(hidden):
        n = caffe.NetSpec()
        n.data, n.label = L.HDF5Data(source="list.txt", batch_size=10, ntop=2)
        below = n.data
        if hidden:
            n.ip1 = L.InnerProduct(n.data, num_output=12)
            n.relu1 = below = L.ReLU(n.ip1, in_place=True)
        n.ip2 = L.InnerProduct(below, num_output=4)
        n.accuracy = L.Accuracy(n.ip2, n.label)
        n.loss = L.SoftmaxWithLoss(n.ip2, n.label)
        return n.to_proto()

    out = {}
    for hidden in (False, True):
        write("logreg.prototxt", logreg_net(hidden))
        write("logreg_solver.prototxt", SOLVER.format(net="logreg.prototxt", prefix="logreg", more="momentum: 0.9"))
        solver = caffe.get_solver("logreg_solver.prototxt")
        randomize(solver.net)
        solver.solve()
        accuracy = 0
        for _ in range(3):
            solver.test_nets[0].forward()
            accuracy += solver.test_nets[0].blobs["accuracy"].data
        out[f"accuracy{int(hidden)}"] = accuracy / 3
        out.update(everything(solver.net, f"net{int(hidden)}/"))
    return out


def fine_tuning():
    """The notebook 02-fine-tuning: weights of another net, frozen layers, two solvers side by side."""
    n = lenet_spec("list.txt")
    write("base.prototxt", n)
    base = caffe.Net("base.prototxt", caffe.TRAIN)
    randomize(base)
    base.save("base.caffemodel")
    for layer in n.layer:
        if layer.name == "conv1":
            layer.param.add().lr_mult = 0
            layer.param.add().lr_mult = 0
        if layer.name == "score":
            layer.name = "new"
    write("tune.prototxt", n)
    write("tune_solver.prototxt", SOLVER.format(net="tune.prototxt", prefix="tune", more="momentum: 0.9"))
    out, solvers = {}, [caffe.SGDSolver("tune_solver.prototxt") for _ in range(2)]
    for number, solver in enumerate(solvers):
        randomize(solver.net, seed=1)
        if number:
            solver.net.copy_from("base.caffemodel")
    for _ in range(4):
        for number, solver in enumerate(solvers):
            solver.step(1)
            out[f"loss{number}"] = solver.net.blobs["loss"].data.copy()
    for number, solver in enumerate(solvers):
        out.update(everything(solver.net, f"tuned{number}/"))
    return out


def surgery():
    """The notebook net_surgery: a filter set by hand, another image size, fully connected layers made convolutional."""
    write(
        "conv.prototxt",
        """name: "convolution" input: "data" input_dim: 1 input_dim: 1 input_dim: 20 input_dim: 24
        layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param { num_output: 3
        kernel_size: 5 stride: 1 weight_filler { type: "gaussian" std: 0.01 } } }""",
    )
    net = caffe.Net("conv.prototxt", caffe.TEST)
    image = caffe.io.load_image("image.png", False).squeeze()
    net.blobs["data"].reshape(1, 1, *image.shape)
    net.blobs["data"].data[...] = image[np.newaxis, np.newaxis]
    ksize = net.params["conv"][0].data.shape[2:]
    sigma, y, x = 1.0, np.mgrid[-(ksize[0] // 2) : ksize[0] // 2 + 1, -(ksize[1] // 2) : ksize[1] // 2 + 1][0], 0
    net.params["conv"][0].data[0] = np.exp(-(y**2) / (2.0 * sigma**2)) / 10
    net.params["conv"][0].data[1:] = 0
    net.params["conv"][0].data[1:, 0, 1:-1, 1:-1] = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    net.params["conv"][1].data[...] = [0.0, 1.0, x]
    net.forward()
    out = everything(net, "filter/")
    write("fc.prototxt", small_net([1, 3, 32, 32]).to_proto())
    fc = caffe.Net("fc.prototxt", caffe.TEST)
    randomize(fc)
    fc.save("fc.caffemodel")
    n = small_net([1, 3, 32, 32])
    size = fc.blobs["conv2"].data.shape[2]
    n.fc3 = L.Convolution(n.conv2, name="fc3-conv", num_output=5, kernel_size=size)
    n.prob = L.Softmax(n.fc3)
    write("full.prototxt", n.to_proto())
    full = caffe.Net("full.prototxt", "fc.caffemodel", caffe.TEST)
    full.params["fc3-conv"][0].data.flat = fc.params["fc3"][0].data.flat
    full.params["fc3-conv"][1].data[...] = fc.params["fc3"][1].data
    full.blobs["data"].reshape(1, 3, 48, 56)
    big = np.random.RandomState(4).rand(1, 3, 48, 56)
    out["map"] = full.forward_all(data=big)["prob"]
    full.save("full.caffemodel")
    out.update(everything(full, "full/"))
    return out


def deepdream():
    """Google's deepdream: gradient ascent on an image, through a layer in the middle, at several sizes."""
    text = "force_backward: true\n" + str(small_net([1, 3, 32, 32]).to_proto())
    write("dream.prototxt", text)
    net = caffe.Classifier(
        "dream.prototxt", saved("dream.prototxt"), mean=np.float32([104.0, 116.0, 122.0]), channel_swap=(2, 1, 0)
    )
    image = np.random.RandomState(2).rand(3, 24, 28).astype(np.float32) * 100 - 50
    src, shapes = net.blobs["data"], []
    for size in ((24, 28), (33, 39)):
        src.reshape(1, 3, *size)
        enlarged = np.zeros((3, *size), np.float32)
        enlarged[:, : image.shape[1], : image.shape[2]] = image
        src.data[0] = enlarged
        for step in range(5):
            src.data[0] = np.roll(np.roll(src.data[0], step, -1), -step, -2)
            dst = net.blobs["conv2"]
            net.forward(end="conv2")
            dst.diff[:] = dst.data
            net.backward(start="conv2")
            g = src.diff[0]
            src.data[:] += 1.5 / np.abs(g).mean() * g
            src.data[0] = np.roll(np.roll(src.data[0], -step, -1), step, -2)
        image = src.data[0].copy()
        shapes.append(dst.data.shape)
    return {"image": image, "gradient": src.diff.copy(), "dst": dst.diff.copy(), "shapes": np.array(shapes)}


def saved(prototxt, seed=0):
    net = caffe.Net(prototxt, caffe.TEST)
    randomize(net, seed)
    net.save(prototxt + ".caffemodel")
    return prototxt + ".caffemodel"


def style():
    """Neural style transfer: losses at several layers, whose gradients are added on the way down."""
    write("style.prototxt", "force_backward: true\n" + str(small_net([1, 3, 32, 32]).to_proto()))
    net = caffe.Net("style.prototxt", saved("style.prototxt"), caffe.TEST)
    random = np.random.RandomState(5)
    target = random.rand(1, 3, 32, 32) * 50
    layers, grams, content = ["conv1", "pool1", "conv2"], {}, None
    net.blobs["data"].data[...] = target
    net.forward()
    for layer in layers:
        features = net.blobs[layer].data[0].reshape(net.blobs[layer].data.shape[1], -1).astype(float)
        grams[layer] = features @ features.T
    content = net.blobs["conv2"].data[0].copy()
    image, losses = random.rand(1, 3, 32, 32) * 50, []
    for _ in range(3):
        net.blobs["data"].data[...] = image
        net.forward(end="relu2")
        net.blobs["conv2"].diff[...] = 0
        total = 0.0
        for index, layer in enumerate(reversed(layers)):
            following = None if index == len(layers) - 1 else list(reversed(layers))[index + 1]
            features = net.blobs[layer].data[0].reshape(net.blobs[layer].data.shape[1], -1).astype(float)
            delta = features @ features.T - grams[layer]
            total += (delta**2).sum() * 1e-6
            net.blobs[layer].diff[0] += (4e-6 * delta @ features).reshape(net.blobs[layer].data[0].shape)
            if index == 0:
                net.blobs[layer].diff[0] += 0.1 * (net.blobs[layer].data[0] - content)
            if following is None:
                net.backward(start=layer)
            else:
                net.backward(start=layer, end=following)
                # the layer's own gradient starts again from what came down to its blob
        image = image - 0.1 * net.blobs["data"].diff
        losses.append(total)
    return {"image": image, "losses": losses, "data": net.blobs["data"].diff.copy()}


def fcn():
    """Fully convolutional networks: bilinear upsampling, Crop, ignored labels, a Python layer for the data."""
    n = caffe.NetSpec()
    n.data, n.label = L.Python(module="layers_of_scenarios", layer="Segments", ntop=2, param_str="{'seed': 7}")
    n.conv1 = L.Convolution(n.data, kernel_size=3, pad=10, num_output=6, param=[dict(lr_mult=1), dict(lr_mult=2)])
    n.relu1 = L.ReLU(n.conv1, in_place=True)
    n.pool1 = L.Pooling(n.relu1, pool=P.Pooling.MAX, kernel_size=2, stride=2)
    n.drop = L.Dropout(n.pool1, dropout_ratio=0.0, in_place=True)
    n.score_fr = L.Convolution(n.drop, kernel_size=1, num_output=3)
    n.upscore = L.Deconvolution(
        n.score_fr,
        convolution_param=dict(num_output=3, kernel_size=4, stride=2, bias_term=False),
        param=[dict(lr_mult=0)],
    )
    n.score = caffe.coord_map.crop(n.upscore, n.data)
    n.loss = L.SoftmaxWithLoss(n.score, n.label, loss_param=dict(normalize=False, ignore_label=255))
    write("fcn.prototxt", n.to_proto())
    more = "momentum: 0.9 average_loss: 2"
    write("fcn_solver.prototxt", SOLVER.format(net="fcn.prototxt", prefix="fcn", more=more).replace("0.05", "1e-3"))
    solver = caffe.SGDSolver("fcn_solver.prototxt")
    randomize(solver.net)
    for name in [name for name in solver.net.params if "up" in name]:
        m, k, h, w = solver.net.params[name][0].data.shape
        centre = (h - 1) / 2.0 if h % 2 == 1 else (h + 1) // 2 - 0.5
        og = np.ogrid[:h, :w]
        filt = (1 - abs(og[0] - centre) / ((h + 1) // 2)) * (1 - abs(og[1] - centre) / ((h + 1) // 2))
        solver.net.params[name][0].data[range(m), range(k), :, :] = filt
    solver.step(4)
    solver.test_nets[0].share_with(solver.net)
    solver.test_nets[0].forward()
    out = everything(solver.net)
    out["hist"] = solver.test_nets[0].blobs["score"].data[0].argmax(0)
    out["test_loss"] = solver.test_nets[0].blobs["loss"].data.copy()
    return out


def merge_bn():
    """MobileNet-SSD's merge_bn: BatchNorm and Scale folded into the convolution before them."""

    def net_of(merged):
        n = caffe.NetSpec()
        n.data = L.Input(shape=dict(dim=[2, 3, 16, 16]))
        n.conv = L.Convolution(n.data, kernel_size=3, num_output=6, bias_term=merged)
        if not merged:
            n.bn = L.BatchNorm(n.conv, in_place=True)
            n.scale = L.Scale(n.conv, bias_term=True, in_place=True)
        n.relu = L.ReLU(n.conv, in_place=True)
        return n.to_proto()

    write("with_bn.prototxt", net_of(False))
    write("merged.prototxt", net_of(True))
    net = caffe.Net("with_bn.prototxt", caffe.TEST)
    randomize(net)
    net.params["bn"][1].data[...] = np.abs(net.params["bn"][1].data) + 1
    net.params["bn"][2].data[...] = 2.5
    merged = caffe.Net("merged.prototxt", caffe.TEST)
    mean, variance, factor = (blob.data for blob in net.params["bn"])
    alpha, beta = (blob.data for blob in net.params["scale"])
    assert isinstance(net.params["bn"], caffe._caffe.BlobVec)
    scale = alpha / np.sqrt(variance / factor + 1e-5)
    merged.params["conv"][0].data[...] = net.params["conv"][0].data * scale[:, None, None, None]
    merged.params["conv"][1].data[...] = beta - scale * mean / factor
    data = np.random.RandomState(1).rand(2, 3, 16, 16)
    first, second = net.forward(data=data)["conv"].copy(), merged.forward(data=data)["conv"].copy()
    return dict(everything(merged), first=first, second=second, weights=merged.params["conv"][0].data)


def detector_layers():
    """py-faster-rcnn: a data layer whose batches change their shapes, proposals by a Python layer, losses of both."""
    n = caffe.NetSpec()
    n.data, n.info, n.boxes = L.Python(module="layers_of_scenarios", layer="Images", ntop=3)
    n.conv = L.Convolution(n.data, kernel_size=3, pad=1, stride=2, num_output=4)
    n.relu = L.ReLU(n.conv, in_place=True)
    n.cls = L.Convolution(n.relu, kernel_size=1, num_output=2)
    n.rois = L.Python(n.cls, n.info, module="layers_of_scenarios", layer="Proposals", param_str="3")
    n.targets = L.Python(n.cls, n.boxes, module="layers_of_scenarios", layer="Targets")
    n.cls_loss = L.SoftmaxWithLoss(
        n.cls, n.targets, propagate_down=[True, False], loss_weight=1, loss_param=dict(ignore_label=-1, normalize=True)
    )
    n.scaled = L.Python(n.conv, module="layers_of_scenarios", layer="Scale", param=[dict(lr_mult=2)])
    n.l2 = L.Python(n.scaled, module="layers_of_scenarios", layer="HalfSquare", loss_weight=0.01)
    n.silence = L.Silence(n.rois, ntop=0)
    write("rcnn.prototxt", n.to_proto())
    text = 'train_net: "rcnn.prototxt" base_lr: 0.05 lr_policy: "fixed" momentum: 0.9 iter_size: 2 max_iter: 9'
    write("rcnn_solver.prototxt", text + ' snapshot_prefix: "rcnn" random_seed: 2')
    solver = caffe.SGDSolver("rcnn_solver.prototxt")
    randomize(solver.net)
    solver.net.layers[0].set_sizes([(12, 16), (20, 10), (14, 14)])
    solver.step(3)
    out = everything(solver.net)
    out["rois"] = solver.net.blobs["rois"].data.copy()
    return out


def siamese():
    """The siamese notebook: two branches with the same weights, and a contrastive loss."""
    n = caffe.NetSpec()
    n.data = L.Input(shape=dict(dim=[6, 2, 12, 12]))
    n.sim = L.Input(shape=dict(dim=[6]))
    n.left, n.right = L.Slice(n.data, slice_dim=1, slice_point=1, ntop=2)
    names = [dict(name="w", lr_mult=1), dict(name="b", lr_mult=2)]
    for side in ("left", "right"):
        n["conv_" + side] = L.Convolution(n[side], kernel_size=3, num_output=4, param=names)
        n["feat_" + side] = L.InnerProduct(n["conv_" + side], num_output=2, param=[dict(name="fw"), dict(name="fb")])
    n.loss = L.ContrastiveLoss(n.feat_left, n.feat_right, n.sim, margin=1)
    write("siamese.prototxt", n.to_proto())
    net = caffe.Net("siamese.prototxt", caffe.TRAIN)
    random = np.random.RandomState(3)
    randomize(net, scale=0.3)
    net.blobs["data"].data[...] = random.rand(6, 2, 12, 12)
    net.blobs["sim"].data[...] = [0, 1, 0, 1, 1, 0]
    net.forward()
    net.backward()
    net.backward()  # gradients of weights add up
    return everything(net)


def passes():
    """Passes between layers, in place and shared blobs, several outputs, gradients given by hand."""
    n = caffe.NetSpec()
    n.data = L.Input(shape=dict(dim=[3, 4, 8, 8]))
    n.a = L.Convolution(n.data, kernel_size=3, num_output=6)
    n.b = L.Sigmoid(n.a, in_place=True)
    n.drop = L.Dropout(n.b, in_place=True)
    n.c = L.Flatten(n.a)
    n.d = L.InnerProduct(n.c, num_output=8)
    n.e = L.TanH(n.d)
    n.f = L.Eltwise(n.d, n.e, operation=P.Eltwise.PROD)
    n.g, n.h = L.Slice(n.f, ntop=2, slice_point=3)
    n.r = L.Reshape(n.h, shape=dict(dim=[0, 1, 5]))
    n.i = L.ELU(n.g)
    n.j = L.Concat(n.i, n.c)
    write("passes.prototxt", "force_backward: true\n" + str(n.to_proto()))
    net = caffe.Net("passes.prototxt", caffe.TEST)
    randomize(net)
    random = np.random.RandomState(6)
    out = {}
    returned = net.forward(blobs=["d", "c"], data=random.randn(3, 4, 8, 8))
    out.update({"returned/" + name: array.copy() for name, array in sorted(returned.items())})
    diffs = {name: random.randn(*net.blobs[name].data.shape) for name in net.outputs}
    back = net.backward(diffs=["d", "a"], **diffs)
    out.update({"back/" + name: array.copy() for name, array in sorted(back.items())})
    out.update(everything(net, "one/"))
    net.blobs["d"].data[...] *= 0.5
    net.forward(start="e", end="f")
    net.blobs["f"].diff[...] = 1
    net.clear_param_diffs()
    net.backward(start="f", end="d")
    out.update(everything(net, "two/"))
    both = net.forward_backward_all(
        blobs=["d"],
        diffs=["d"],
        data=random.randn(5, 4, 8, 8),
        **{name: random.randn(5, *net.blobs[name].data.shape[1:]) for name in net.outputs},
    )
    for side, arrays in zip(("all/", "alldiff/"), both):  # noqa: B905 - Python 3.6
        out.update({side + name: array[:5] for name, array in sorted(arrays.items())})  # pycaffe leaves padding
    out["inputs"], out["outputs"] = np.array(net.inputs), np.array(net.outputs)
    out["weights"] = np.array(list(net.blob_loss_weights.values()))
    out["shapes"] = np.array(
        [
            list(net.blobs["data"].shape),
            [net.blobs["data"].num, net.blobs["data"].channels, net.blobs["data"].height, net.blobs["data"].width],
        ]
    )
    return out


def between():
    """What a script changes between the passes: the backward pass reads weights and blobs as they are then."""
    n = caffe.NetSpec()
    n.data = L.Input(shape=dict(dim=[2, 3, 6, 6]))
    n.a = L.Deconvolution(n.data, convolution_param=dict(kernel_size=3, num_output=4))
    n.b = L.Scale(n.a, bias_term=True)
    n.c = L.PReLU(n.b)
    n.d = L.Eltwise(n.c, n.a, operation=P.Eltwise.PROD)
    n.e = L.InnerProduct(n.d, num_output=5, axis=2)
    n.f = L.Softmax(n.e, axis=2)  # over the outputs: over the channels, the gradient of their biases would be 0
    n.g = L.InnerProduct(n.f, num_output=3)
    write("between.prototxt", "force_backward: true\n" + str(n.to_proto()))
    net = caffe.Net("between.prototxt", caffe.TRAIN)
    randomize(net, 1)
    net.save("other.caffemodel")
    out = {}
    for step in ("weights from a file", "weights by hand", "blobs"):
        net = caffe.Net("between.prototxt", caffe.TRAIN)
        randomize(net)
        random = np.random.RandomState(3)
        net.blobs["data"].data[...] = random.randn(2, 3, 6, 6)
        net.forward()
        net.blobs["g"].diff[...] = random.randn(2, 3)
        net.backward()
        if step == "weights from a file":
            net.copy_from("other.caffemodel")
        elif step == "weights by hand":
            for blobs in net.params.values():
                blobs[0].data[...] *= 2
        else:
            for name in ("data", "a", "b", "c", "d"):
                net.blobs[name].data[...] *= 1.5
        net.backward()
        out.update(everything(net, step + "/"))
    return out


def batch_norm():
    """BatchNorm, Scale, PReLU and Dropout in place, in training; all blobs are looked at before the second pass."""
    n = caffe.NetSpec()
    n.data = L.Input(shape=dict(dim=[4, 3, 6, 6]))
    n.conv = L.Convolution(n.data, kernel_size=3, num_output=5, bias_term=False)
    n.bn = L.BatchNorm(n.conv, in_place=True)
    n.scale = L.Scale(n.bn, bias_term=True, in_place=True)
    n.prelu = L.PReLU(n.scale, in_place=True)
    n.drop = L.Dropout(n.prelu, dropout_ratio=0.0, in_place=True)
    n.bias = L.Bias(n.drop, in_place=True)
    n.bnll = L.BNLL(n.bias)
    n.power = L.Power(n.bnll, power=2, scale=0.5, shift=3)
    n.ip = L.InnerProduct(n.power, num_output=3)
    n.sum = L.Reduction(n.ip, operation=P.Reduction.SUMSQ, loss_weight=0.5)
    write("bn.prototxt", "force_backward: true\n" + str(n.to_proto()))
    net, random, out = caffe.Net("bn.prototxt", caffe.TRAIN), np.random.RandomState(9), {}
    randomize(net)
    for blob in net.params["bn"]:
        blob.data[...] = 0
    for turn in range(3):
        net.blobs["data"].data[...] = random.randn(4, 3, 6, 6)
        net.clear_param_diffs()
        net.forward()
        net.backward()
        out.update(everything(net, f"{turn}/"))
    return out


def memory():
    """MemoryData and set_input_arrays."""
    write(
        "memory.prototxt",
        """layer { name: "data" type: "MemoryData" top: "data" top: "label"
        memory_data_param { batch_size: 2 channels: 3 height: 4 width: 5 } }
        layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 3 } }
        layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" loss_weight: 2 }""",
    )
    net = caffe.Net("memory.prototxt", caffe.TRAIN)
    randomize(net)
    random = np.random.RandomState(8)
    images, labels = random.rand(6, 3, 4, 5).astype(np.float32), np.array([0, 1, 2, 2, 1, 0], np.float32)
    net.set_input_arrays(images, labels)
    out = {}
    for batch in range(4):
        net.forward()
        net.backward()
        out.update(everything(net, f"{batch}/"))
    return out


if __name__ == "__main__":
    name, folder, path = sys.argv[1:]
    os.chdir(folder)
    sys.path.insert(0, folder)
    caffe.set_mode_cpu()
    arrays = {key: np.asarray(value) for key, value in globals()[name]().items()}
    np.savez(path, **arrays)
