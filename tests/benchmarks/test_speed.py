"""The benchmarks of training, apart from the times: data, programs, flags, and the floor."""

import argparse
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks import floor, naive, speed
from benchmarks.data import DOCUMENT

from transfer_caffe.formats.database import Database
from transfer_caffe.formats.proto import parse_text
from transfer_caffe.formats.proto.caffe_pb2 import NetParameter

NET = """
layer { name: "d" type: "DummyData" top: "x" top: "label"
        dummy_data_param { shape { dim: 10 dim: 4 } shape { dim: 10 } } }
layer { name: "one" type: "InnerProduct" bottom: "x" top: "y" param { lr_mult: RATE }
        inner_product_param { num_output: 100 bias_term: false } }
layer { name: "relu" type: "ReLU" bottom: "y" top: "y" }
layer { name: "two" type: "InnerProduct" bottom: "y" top: "z" inner_product_param { num_output: 3 bias_term: false } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "z" bottom: "label" top: "loss" }
"""


def options(**given):
    return argparse.Namespace(**{"gpu": "0", "precision": "fp32,bf16", **given})


def test_the_images_are_noise_and_need_no_photographs(tmp_path, monkeypatch):
    for name in ("sklearn", "skimage"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it fails
    speed.make_data(tmp_path)
    for name, side in (("raw32", 32), ("raw256", 256), ("jpeg256", 256)):
        records = Database(str(tmp_path / name))
        image, label = records.record(7)
        assert image.shape == (3, side, side) and label == 7 and image.std() > 30
    size = (tmp_path / "jpeg256" / "data.mdb").stat().st_size / 3500
    assert 15_000 < size < 60_000  # like a photograph, not like white noise, which is decoded slowly


def test_a_net_reads_records_on_a_gpu_and_in_the_cases_with_a_database():
    kinds = {
        (data, gpu): speed.net_of(speed.Case("caffenet", 256, data=data), Path("where"), gpu).layer[0]
        for data in ("", "raw", "jpeg")
        for gpu in (False, True)
    }
    assert kinds["", False].type == "DummyData"
    sources = {key: layer.data_param.source for key, layer in kinds.items() if layer.type == "Data"}
    assert sources == {
        ("", True): "where/raw256", ("raw", False): "where/raw256", ("raw", True): "where/raw256",
        ("jpeg", False): "where/jpeg256", ("jpeg", True): "where/jpeg256",
    }  # fmt: skip


def test_each_precision_is_compared_with_pytorch_in_the_same_precision():
    names = speed.programs(options())
    assert names[0] == "PyTorch as usual, fp32" and names[-1] == "embedded, bf16"
    assert speed.compared(names) == [
        ("embedded, fp32", "PyTorch as usual, fp32"), ("embedded, bf16", "PyTorch as usual, bf16"),
    ]  # fmt: skip
    assert speed.engine_flags("embedded, bf16", "1") == ["--gpu", "1", "--precision", "bf16"]
    fastest = speed.engine_flags("embedded, tf32, fastest algorithms", "0")
    assert fastest == ["--gpu", "0", "--precision", "tf32", "--deterministic", "off"]
    assert speed.compared(["real Caffe", "real Caffe, one thread", "embedded, one thread", "embedded"]) == [
        ("embedded", "real Caffe"), ("embedded, one thread", "real Caffe, one thread"),
    ]  # fmt: skip


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_pytorch_as_usual_computes_in_the_precision_with_which_it_is_compared(precision):
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    try:
        low = naive.use(precision, torch.device("cpu"))
        assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == (precision == "tf32")
        with low():
            made = torch.ones(2, 2) @ torch.ones(2, 2)
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
    assert made.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)


@pytest.mark.parametrize("rate", [0, 1])
@pytest.mark.parametrize(("precision", "size", "more"), [("fp32", 4, 0), ("tf32", 4, 0), ("bf16", 2, 2)])
def test_the_floor_counts_products_values_and_weights(rate, precision, size, more):
    net = floor.net_in_silence(parse_text(NET.replace("RATE", str(rate)), NetParameter(), ""))
    gflop, gigabytes = floor.work(net, precision)
    assert gflop * 1e9 == pytest.approx(2 * 10 * (400 * (1 + rate) + 300 * (2 + rate)))
    values = 10 * (4 + 1) + 1000 * (1 + rate) + 30 * 2 + 1 * 2  # data once, the others in each learning direction
    update = 2 * size + 16 + more  # gradient written and read, weight and history, and the copy in bf16
    weights = 400 * (size + rate * update) + 300 * (size * (1 + rate) + update)
    assert gigabytes * 1e9 == pytest.approx(2 * size * values + weights)
    found = {"GFLOP/s": 2.0, "GFLOP/s, bf16": 4.0, "GB/s": 0.5}
    assert floor.seconds(8, 3, found) == 10 and floor.seconds(8, 3, found, "bf16") == 8


def test_rates_are_measured_for_each_precision_and_leave_the_flags_as_they_were():
    before = torch.backends.cuda.matmul.allow_tf32
    found = floor.rates(torch.device("cpu"), ["tf32", "bf16"], tiny=True)
    assert set(found) == {"GB/s", "GFLOP/s, tf32", "GFLOP/s, bf16"} and min(found.values()) > 0
    assert torch.backends.cuda.matmul.allow_tf32 == before


def test_noise_is_the_same_each_time():
    one, other = (speed.noise(np.random.default_rng(1), 32) for _ in range(2))
    assert np.array_equal(one, other)


def test_the_floor_in_the_document_is_the_one_that_is_computed():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert all(table in text for table in floor.tables().split("\n\n"))
