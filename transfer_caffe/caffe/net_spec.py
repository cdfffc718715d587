"""Write nets in Python (python/caffe/net_spec.py).

    from caffe import layers as L, params as P

    n = caffe.NetSpec()
    n.data, n.label = L.DummyData(shape=[dict(dim=[8, 1, 28, 28]), dict(dim=[8])], ntop=2)
    n.ip = L.InnerProduct(n.data, num_output=10, weight_filler=dict(type="xavier"))
    n.loss = L.SoftmaxWithLoss(n.ip, n.label)
    n.to_proto()                        # a NetParameter; str() of it is a prototxt

A layer's own settings are given without the name of their message: kernel_size, not convolution_param. A dict is a
message, a list a repeated field.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf.message import Message

from transfer_caffe.formats.proto import caffe_pb2
from transfer_caffe.formats.proto.caffe_pb2 import LayerParameter, NetParameter


def param_name_dict() -> dict[str, str]:
    """Return, for each layer type with settings of its own, the name of their field without `_param`."""
    found = {}
    for field in LayerParameter.DESCRIPTOR.fields:
        if field.name.endswith("_param") and field.message_type is not None:
            found[field.message_type.name.removesuffix("Parameter")] = field.name.removesuffix("_param")
    return found


def assign_proto(proto: Message, name: str, val: Any) -> None:
    """Set a field of a message: a dict is a message, a list a repeated field, to which a single value also fits."""
    field = getattr(proto, name)
    if hasattr(field, "extend"):
        values = val if isinstance(val, list) else list(val) if isinstance(val, tuple) else [val]
        if values and isinstance(values[0], Mapping):
            for item in values:
                _assign_all(field.add(), item)
        else:
            field.extend(values)
    elif isinstance(val, Mapping):
        _assign_all(field, val)
    else:
        setattr(proto, name, val)


def _assign_all(message: Message, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        assign_proto(message, name, value)


class Names:
    """The names of tops and layers in one net: those that were given, and TYPE1, TYPE2, ... for others."""

    def __init__(self, given: Mapping[Any, str] | None = None) -> None:
        """``given`` has the names of tops, or of functions without tops."""
        self._names: dict[Any, str] = dict(given or {})
        self._counts: Counter[str] = Counter()

    def of(self, key: Any, kind: str) -> str:
        """Return the name of a top or function of a layer type."""
        if key not in self._names:
            self._counts[kind] += 1
            self._names[key] = f"{kind}{self._counts[kind]}"
        return self._names[key]


class Function:
    """A layer: its type, its bottoms, and its settings. ``ntop`` and ``in_place`` are no fields of the prototxt."""

    def __init__(self, type_name: str, inputs: tuple[Any, ...], params: dict[str, Any]) -> None:
        """Raise TypeError for a bottom that is not a `Top`."""
        for index, bottom in enumerate(inputs):
            if not isinstance(bottom, Top):
                raise TypeError(f"{type_name} input {index} is not a Top (type is {type(bottom)})")
        self.type_name, self.inputs = type_name, inputs
        self.params = {name: value for name, value in params.items() if name not in ("ntop", "in_place")}
        self.ntop, self.in_place = params.get("ntop", 1), params.get("in_place", False)
        self.tops = tuple(Top(self, number) for number in range(self.ntop))

    def _to_proto(self, layers: dict[Function, LayerParameter], names: Names) -> None:
        """Add the layer, after those that it needs, to ``layers``."""
        if self in layers:
            return
        bottoms = []
        for bottom in self.inputs:
            bottom.fn._to_proto(layers, names)
            bottoms.append(layers[bottom.fn].top[bottom.n])
        tops = bottoms if self.in_place else [names.of(top, self.type_name) for top in self.tops]
        key = self.tops[0] if self.tops else self
        layer = LayerParameter(type=self.type_name, bottom=bottoms, top=tops, name=names.of(key, self.type_name))
        own = f"{_param_names[self.type_name]}_param" if self.type_name in _param_names else ""
        for name, value in self.params.items():
            message = getattr(layer, own) if own else layer
            belongs = own and not name.endswith("param") and name in message.DESCRIPTOR.fields_by_name
            assign_proto(message if belongs else layer, name, value)
        layers[self] = layer


class Top:
    """A blob: top number ``n`` of a `Function`."""

    def __init__(self, fn: Function, n: int) -> None:
        """Create the top of a layer."""
        self.fn, self.n = fn, n

    def to_proto(self) -> NetParameter:
        """Return the net of all layers that this blob needs."""
        return to_proto(self)


def to_proto(*tops: Top) -> NetParameter:
    """Return the net of all layers that some blobs need; its blobs are named by their layers' types."""
    layers: dict[Function, LayerParameter] = {}
    names = Names()
    for top in tops:
        top.fn._to_proto(layers, names)
    return NetParameter(layer=layers.values())


class _NoBlobError(AttributeError, KeyError):
    """A blob that a NetSpec does not have; pycaffe raises KeyError, and hasattr needs AttributeError."""

    __str__ = AttributeError.__str__


class NetSpec:
    """A net whose blobs are its attributes (or items), named by them."""

    tops: OrderedDict[str, Any]

    def __init__(self) -> None:
        """Create a net without layers."""
        super().__setattr__("tops", OrderedDict())

    def __setattr__(self, name: str, value: Any) -> None:
        """Name a blob."""
        self.tops[name] = value

    def __getattr__(self, name: str) -> Any:
        """Return a blob."""
        if name.startswith("__") or name not in self.tops:
            raise _NoBlobError(f"this NetSpec has no blob {name!r}")
        return self.tops[name]

    def __setitem__(self, name: str, value: Any) -> None:
        """Name a blob whose name is no identifier."""
        self.tops[name] = value

    def __getitem__(self, name: str) -> Any:
        """Return a blob."""
        return self.tops[name]

    def __delattr__(self, name: str) -> None:
        """Remove a blob."""
        del self.tops[name]

    def to_proto(self) -> NetParameter:
        """Return the net of all layers that its blobs need."""
        names = Names({top: name for name, top in self.tops.items()})
        layers: dict[Function, LayerParameter] = {}
        for top in self.tops.values():
            function = top if isinstance(top, Function) else top.fn
            function._to_proto(layers, names)
        return NetParameter(layer=layers.values())


class Layers:
    """`caffe.layers`: each attribute is a layer type, a function from bottoms and settings to its top or tops."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return the function of a layer type."""
        if name.startswith("__"):
            raise AttributeError(name)

        def layer(*bottoms: Top, **settings: Any) -> Any:
            function = Function(name, bottoms, settings)
            return function if not function.ntop else function.tops[0] if function.ntop == 1 else function.tops

        return layer


class Parameters:
    """`caffe.params`: the constants of a layer type's settings, such as P.Pooling.MAX."""

    def __getattr__(self, name: str) -> Any:
        """Return the message with the settings of a layer type."""
        message = getattr(caffe_pb2, f"{name}Parameter", None)
        if message is None:
            raise AttributeError(f"there are no settings {name}Parameter")
        return message


_param_names = param_name_dict()
layers = Layers()
params = Parameters()
