"""Rewrite any net for the experiment: other data layers, as many outputs as there are classes, frozen stages.

    net = rewrite(read_net("bvlc_googlenet/train_val.prototxt"), Change(...))

The message is changed, not its text, so a net may have any age and form: the data layers of a train_val.prototxt are
replaced, and so is the Input of a deploy.prototxt, which also gets a loss. Layers keep their names, because weights are
copied by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from transfer_caffe.experiment.stages import (
    COMPANIONS,
    Stage,
    has_weights,
    images_of,
    losses_of,
    main_loss,
    stages_of,
    training_layers,
)
from transfer_caffe.formats.proto import caffe_pb2
from transfer_caffe.formats.proto.caffe_pb2 import TEST, TRAIN, LayerParameter, NetParameter, TransformationParameter
from transfer_caffe.utils.errors import UserError

CLASSIFIER_LOSSES = ("SoftmaxWithLoss", "HingeLoss", "MultinomialLogisticLoss", "InfogainLoss")
"""Losses with one label per image and one output per class."""

LOSS, ACCURACY, LABEL = "loss", "accuracy", "label"
"""The tops by which the log is read, and that of the labels."""


@dataclass(frozen=True)
class Source:
    """What a data layer reads: a database, how many images a batch, and what is done to them."""

    database: str
    batch: int
    transform: TransformationParameter


@dataclass(frozen=True)
class Change:
    """How a net is changed.

    ``train`` and ``test``: the new data layers. ``classes``: the outputs of the classifier layers. ``frozen``: how many
    stages, from the first, do not learn; ``copied``: how many get their weights from another network. ``cuts``: as in
    `stages_of`. ``global_stats``: whether a frozen BatchNorm uses its stored statistics during training, too.
    ``rates``: factors for the lr_mult of stages, by the stage's number.
    """

    train: Source
    test: Source
    classes: int
    frozen: int = 0
    copied: int = 0
    cuts: tuple[str, ...] = ()
    global_stats: bool = True
    rates: dict[int, float] = field(default_factory=dict)


def rewrite(net: NetParameter, change: Change, name: str = "") -> NetParameter:
    """Return a copy of ``net`` for the experiment, under ``name`` if it is given.

    UserError for a net with several sources of images, without a classifier, or whose frozen stages share weights with
    others.
    """
    where = f"net {net.name!r}" if net.name else "the net"
    images = images_of(training_layers(net), where)
    new = NetParameter(name=name or net.name)
    new.layer.extend([_data(TRAIN, images, change.train), _data(TEST, images, change.test)])
    body = _body(net, where)
    if not losses_of(body):
        _add_loss(body, images, where)
    main = main_loss(body)
    assert main is not None
    if main.type not in CLASSIFIER_LOSSES:
        raise UserError(
            f"{where}: its loss {main.name!r} is a {main.type}; the loss of a classifier is needed: one of "
            f"{', '.join(CLASSIFIER_LOSSES)}"
        )
    old_label = main.bottom[1] if len(main.bottom) > 1 else LABEL
    _rename(body, old_label, LABEL)
    if main.top and main.top[0] != LOSS:
        _rename(body, main.top[0], LOSS)
    elif not main.top:
        main.top.append(LOSS)
    for loss in losses_of(body):
        for classifier in classifiers(loss, body, where):
            _set_outputs(classifier, change.classes)
            _start_small(classifier)
    logits = main.bottom[0]
    place = next(index for index, layer in enumerate(body) if layer is main)
    _rename(body, ACCURACY, f"{ACCURACY}_of_the_net")
    body.insert(place, _accuracy(logits if logits != ACCURACY else f"{ACCURACY}_of_the_net"))
    new.layer.extend(body)
    _set_fillers(new)
    _use_free_names(new)
    stages = stages_of(new, change.cuts)
    _freeze(new, stages, change, where)
    return new


def _data(phase: int, images: str, source: Source) -> LayerParameter:
    layer = LayerParameter(name="data", type="Data", top=[images, LABEL])
    layer.include.add(phase=phase)  # pyright: ignore[reportArgumentType]
    layer.transform_param.CopyFrom(source.transform)
    layer.data_param.source = source.database
    layer.data_param.batch_size = source.batch
    layer.data_param.backend = caffe_pb2.DataParameter.LMDB
    return layer


def _body(net: NetParameter, where: str) -> list[LayerParameter]:
    """The layers that compute, of the phase TRAIN and of both: no data, no accuracies, no outputs of deployment."""
    reading = {layer.name for layer in net.layer if not layer.bottom and layer.type != "Parameter"}
    kept = []
    for layer in training_layers(net):
        if layer.name in reading or layer.type in ("Accuracy", "Silence"):
            continue
        copy = LayerParameter()
        copy.CopyFrom(layer)
        if copy.type == "Parameter":
            raise UserError(f"{where}: layer {copy.name!r} is a Parameter, which a stage cannot contain; leave it out")
        copy.ClearField("blobs")
        if copy.type == "BatchNorm":  # deploy nets use stored statistics everywhere; layers that learn must not
            copy.batch_norm_param.ClearField("use_global_stats")
        if any(rule.HasField("phase") and rule.phase == TRAIN for rule in layer.include):
            del copy.include[:]  # the main path is tested as well; what only training has must not be lost either
        kept.append(copy)
    if not kept:
        raise UserError(f"{where}: it has no layers besides those that read data")
    return kept


def _add_loss(body: list[LayerParameter], images: str, where: str) -> None:
    """Give a deploy net a loss: on the bottom of the Softmax that is its output, or on its output."""
    unread: dict[str, LayerParameter] = {}  # as Net::Init: the outputs are the tops that no later layer reads
    for layer in body:
        for bottom in layer.bottom:
            unread.pop(bottom, None)
        unread |= dict.fromkeys(layer.top, layer)
    if len(unread) != 1:
        names = ", ".join(map(repr, unread)) or "none"
        raise UserError(f"{where}: a net without a loss needs one output, the class scores; its outputs are {names}")
    (last,) = unread.values()
    if last.type == "ArgMax":
        raise UserError(f"{where}: its output {last.top[0]!r} is an ArgMax, not class scores; remove that layer")
    if not any(has_weights(layer) for layer in body):
        raise UserError(f"{where}: no layer has weights, so there is nothing to train")
    if last.type == "Softmax":
        logits = last.bottom[0]
        body.remove(last)
    else:
        logits = last.top[0]
    if logits == images:
        raise UserError(f"{where}: its output is computed from nothing but the images, without weights")
    body.append(LayerParameter(name=LOSS, type="SoftmaxWithLoss", bottom=[logits, LABEL], top=[LOSS]))


def _accuracy(logits: str) -> LayerParameter:
    layer = LayerParameter(name=ACCURACY, type="Accuracy", bottom=[logits, LABEL], top=[ACCURACY])
    layer.include.add(phase=TEST)
    return layer


def _rename(body: Sequence[LayerParameter], old: str, new: str) -> None:
    """Rename a blob, in all bottoms and tops. Another blob of the new name gets a name that is free."""
    if old == new:
        return
    for layer in body:
        for blobs in (layer.bottom, layer.top):
            for index, blob in enumerate(blobs):
                if blob == new:
                    blobs[index] = f"{new}_of_the_net"
                elif blob == old:
                    blobs[index] = new


def classifiers(loss: LayerParameter, body: Sequence[LayerParameter], where: str) -> list[LayerParameter]:
    """Return the layers whose outputs are the classes: the first with weights on each way back from a loss."""
    place = next(index for index, layer in enumerate(body) if layer is loss)
    wanted, found = {loss.bottom[0]}, []
    for layer in reversed(body[:place]):
        if not wanted & set(layer.top):
            continue
        if has_weights(layer) and layer.type not in COMPANIONS:
            found.append(layer)
            wanted -= set(layer.top)
        else:
            in_place = set(layer.top) & set(layer.bottom)
            wanted = (wanted - set(layer.top)) | set(layer.bottom) | in_place
    for layer in found:
        if layer.type not in ("InnerProduct", "Convolution"):
            raise UserError(
                f"{where}: the classifier of {loss.name!r} is {layer.name!r}, a {layer.type}: its outputs cannot be set"
            )
    if not found:
        raise UserError(f"{where}: no layer with weights leads to the loss {loss.name!r}")
    return found


def _set_outputs(layer: LayerParameter, classes: int) -> None:
    if layer.type == "InnerProduct":
        layer.inner_product_param.num_output = classes
    else:
        layer.convolution_param.num_output = classes
        layer.convolution_param.group = 1


def _start_small(classifier: LayerParameter) -> None:
    """Give a classifier without a weight filler one that starts with nearly equal scores for all classes.

    Features of a pretrained net may be of any size: scores of the same size make the first losses, and the first
    updates, so large that units die. 0.01 is what BVLC's example of fine-tuning has (finetune_flickr_style).
    """
    kind = classifier.inner_product_param if classifier.type == "InnerProduct" else classifier.convolution_param
    if not kind.HasField("weight_filler"):
        kind.weight_filler.type, kind.weight_filler.std = "gaussian", 0.01


def _set_fillers(net: NetParameter) -> None:
    """Give layers without a weight filler one: a deploy net has none, and weights that start at 0 stay there."""
    for layer in net.layer:
        for kind in ("convolution_param", "inner_product_param"):
            if layer.type in ("Convolution", "Deconvolution", "InnerProduct") and layer.HasField(kind):
                param = getattr(layer, kind)
                if not param.HasField("weight_filler"):
                    param.weight_filler.type = "msra"


def _use_free_names(net: NetParameter) -> None:
    """Give layers of the types that are inserted names that no other layer has: weights are copied by name."""
    inserted = ("Data", "Accuracy", "SoftmaxWithLoss")
    own = {layer.name for layer in net.layer if layer.type not in inserted}
    for layer in net.layer:
        if layer.type in inserted:
            while layer.name in own:
                layer.name += "_"


def blobs_of(layer: LayerParameter) -> int:
    """Return how many blobs with weights a layer has; 0 for one without, and for one whose number is not known here."""
    if layer.type in ("Convolution", "Deconvolution"):
        return 1 + layer.convolution_param.bias_term
    if layer.type == "InnerProduct":
        return 1 + layer.inner_product_param.bias_term
    if layer.type == "Embed":
        return 1 + layer.embed_param.bias_term
    if layer.type == "BatchNorm":
        return 3
    if layer.type == "Scale" and len(layer.bottom) == 1:
        return 1 + layer.scale_param.bias_term
    if layer.type == "Bias" and len(layer.bottom) == 1:
        return 1
    # recurrent layers have one more with an input that is the same in all steps
    exposed = layer.recurrent_param.expose_hidden
    if layer.type == "LSTM":
        return 3 + (len(layer.bottom) > 2 + 2 * exposed)
    if layer.type == "RNN":
        return 5 + (len(layer.bottom) > 2 + exposed)
    return {"PReLU": 1, "Parameter": 1}.get(layer.type, 0)


def _freeze(net: NetParameter, stages: Sequence[Stage], change: Change, where: str) -> None:
    if not 0 <= change.frozen < max(len(stages), 1):
        raise UserError(f"{where}: it has {len(stages)} stages; {change.frozen} of them cannot be frozen")
    stage_of = {name: stage.number for stage in stages for name in stage.layers}
    shared: dict[str, tuple[str, bool]] = {}
    for layer in net.layer:
        number = stage_of.get(layer.name)
        frozen = number is not None and number <= change.frozen
        for spec in layer.param:
            if spec.name:
                inside = number is not None and number <= max(change.frozen, change.copied)
                first = shared.setdefault(spec.name, (layer.name, inside))
                if first[1] != inside:
                    raise UserError(
                        f"{where}: {first[0]!r} and {layer.name!r} share the weights {spec.name!r}, but only one is "
                        f"in the first {max(change.frozen, change.copied)} stages; choose another n"
                    )
        if frozen and has_weights(layer):
            while len(layer.param) < blobs_of(layer):
                layer.param.add()
            for spec in layer.param:
                spec.lr_mult = spec.decay_mult = 0
            if layer.type == "BatchNorm" and change.global_stats:
                layer.batch_norm_param.use_global_stats = True
            continue
        if layer.type != "BatchNorm" and layer.param and not any(spec.lr_mult for spec in layer.param):
            for spec in layer.param:  # frozen in the net itself: for the experiment its layers learn
                spec.lr_mult = 1
        if number in change.rates and has_weights(layer):
            while len(layer.param) < blobs_of(layer):
                layer.param.add()
            for spec in layer.param:
                spec.lr_mult *= change.rates[number]
