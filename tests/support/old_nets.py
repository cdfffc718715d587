"""Random nets in the formats of Caffe before 2015, with all of their fields, and upgrades by real Caffe's tools."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from transfer_caffe.formats.proto import read_binary, read_text, to_text, write_binary
from transfer_caffe.formats.proto.caffe_pb2 import BlobShape, NetParameter, SolverParameter
from transfer_caffe.formats.upgrade import V0_FIELDS, V0_TYPES
from transfer_caffe.real_caffe import programs as real_caffe


def fill(message: Message, draw: random.Random, share: float, depth: int = 0) -> None:
    """Set a random share of the fields of a message and its nested messages to random values."""
    for field in message.DESCRIPTOR.fields:
        if draw.random() > share and not field.is_required:
            continue
        put(message, field, draw, depth)


def put(message: Message, field: Any, draw: random.Random, depth: int = 0) -> None:
    """Set one field, or add up to three values to it."""
    current = getattr(message, field.name)
    for _ in range(draw.randint(1, 3) if field.is_repeated else 1):
        if field.message_type:
            fill(current.add() if field.is_repeated else current, draw, 0.4 if depth < 2 else 0, depth + 1)
            if not field.is_repeated:
                current.SetInParent()
        elif field.is_repeated:
            current.append(value_for(field, draw))
        else:
            setattr(message, field.name, value_for(field, draw))


def value_for(field: Any, draw: random.Random) -> Any:
    """Return a random value of the field's type."""
    if field.enum_type:
        return draw.choice(field.enum_type.values).number
    return {
        FieldDescriptor.CPPTYPE_STRING: lambda: draw.choice(["", "a b", 'quote " and \\', "x/y.z"]),
        FieldDescriptor.CPPTYPE_BOOL: lambda: draw.random() < 0.5,
        FieldDescriptor.CPPTYPE_FLOAT: lambda: draw.choice([0, 1, 0.00390625, -0.1, 1e-20, 3e38, 123456.789]),
        FieldDescriptor.CPPTYPE_DOUBLE: lambda: draw.choice([0, 0.1, 1e-300]),
    }.get(field.cpp_type, lambda: draw.choice([0, 1, 2, 227, 2**31 - 1]))()


def v1_net(draw: random.Random) -> NetParameter:
    """Return a random net in the format of 2014, with layers of all types and any fields; it may be invalid."""
    net = NetParameter()
    for name in ("name", "force_backward", "debug_info", "state"):
        if draw.random() < 0.4:
            put(net, NetParameter.DESCRIPTOR.fields_by_name[name], draw)
    inputs(net, draw, ["input_shape", "input_dim"])
    for _ in range(draw.randint(1, 12)):
        layer = net.layers.add()
        fill(layer, draw, draw.choice([0.1, 0.3, 0.9]))
        layer.ClearField("layer")
    return net


def v0_net(draw: random.Random, sensible: bool = False) -> NetParameter:
    """Return a random net in the format of 2013; with ``sensible``, without fields that Caffe's upgrade drops."""
    net = NetParameter()
    names = ["name", "force_backward"] if sensible else ["name", "force_backward", "debug_info", "state"]
    for name in names:
        if draw.random() < 0.4:
            put(net, NetParameter.DESCRIPTOR.fields_by_name[name], draw)
    inputs(net, draw, ["input_dim"] if sensible else ["input_shape", "input_dim"])
    blobs, padded = list(net.input), []
    for index in range(draw.randint(1, 15)):
        connection = net.layers.add()
        kind = draw.choice([*V0_TYPES, "padding", "conv", "pool", *([] if sensible else [None])])
        if not sensible and draw.random() < 0.2:
            fill(connection, draw, 0.2)
            connection.ClearField("bottom")
            connection.ClearField("top")
            connection.ClearField("layer")
        if kind is None:
            if draw.random() < 0.5:
                connection.layer.name = "of no type"
        else:
            connection.layer.type = str(kind)
        for field in connection.layer.DESCRIPTOR.fields:
            meant = {kind, "*"} & set(V0_FIELDS.get(field.name, {"*": ""}))
            if field.name != "type" and draw.random() < (0.5 if meant else 0 if sensible or kind is None else 0.05):
                put(connection.layer, field, draw)
        connection.top.append(f"blob{index}")
        if kind == "padding":
            if not blobs:
                del net.layers[-1]
                continue
            connection.bottom.append(draw.choice(blobs))
            padded.append(connection.top[0])
            continue
        if kind in ("conv", "pool") and padded and draw.random() < 0.7:
            connection.bottom.append(draw.choice(padded))
        elif blobs:
            connection.bottom.extend(draw.choices(blobs, k=draw.randint(0, 2)))
        if blobs and draw.random() < 0.2:
            connection.top[0] = connection.bottom[0] if connection.bottom else connection.top[0]
            if connection.top[0] in padded:
                padded.remove(connection.top[0])
        if connection.top[0] not in blobs:
            blobs.append(connection.top[0])
    return net


def inputs(net: NetParameter, draw: random.Random, kinds: list[str]) -> None:
    """Add inputs to the net, with sizes, or without them as in files of weights."""
    net.input.extend(["data", "label"][: draw.randint(0, 2)])
    for kind in draw.sample(kinds, draw.randint(0, len(kinds))):
        if kind == "input_dim":
            net.input_dim.extend(draw.choices([1, 3, 227], k=4 * len(net.input)))
        else:
            net.input_shape.extend(BlobShape(dim=[2] * draw.randint(0, 4)) for _ in net.input)


KINDS = {
    "net_text": ("upgrade_net_proto_text", NetParameter),
    "net_binary": ("upgrade_net_proto_binary", NetParameter),
    "solver_text": ("upgrade_solver_proto_text", SolverParameter),
}


def kind_of(path: Path) -> str:
    """Return the kind of a file in tests/golden/upgrade, given by its name."""
    if path.name.startswith("solver"):
        return "solver_text"
    return "net_binary" if path.stem.endswith("weights") else "net_text"


def ask_real_caffe(kind: str, old: Path, new: Path) -> subprocess.CompletedProcess[str]:
    """Upgrade a file with real Caffe's tool; the exit code is 1 if it wrote the file, but dropped some fields."""
    tool = real_caffe.program(KINDS[kind][0])
    assert tool is not None
    environment = os.environ | {"GLOG_logtostderr": "1"}
    return subprocess.run([str(tool), str(old), str(new)], capture_output=True, text=True, env=environment)


def upgraded_by_real_caffe(param: Message, kind: str, folder: Path) -> tuple[int, Message | None]:
    """Upgrade ``param`` with real Caffe's tool; return the exit code and the upgraded message, None without output."""
    old, new = folder / "old", folder / "new"
    new.unlink(missing_ok=True)
    if kind == "net_binary":
        write_binary(old, param)
    else:
        old.write_text(to_text(param))
    done = ask_real_caffe(kind, old, new)
    if not new.exists():
        return done.returncode, None
    made = KINDS[kind][1]()
    if not new.stat().st_size:
        return done.returncode, made
    return done.returncode, read_binary(new, made) if kind == "net_binary" else read_text(new, made)
