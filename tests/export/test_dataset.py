"""A database or view as a PyTorch dataset: the records to the byte, also in workers."""

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import transfer_caffe as tc
from transfer_caffe.formats.database import Database
from transfer_caffe.formats.views import open_records, write_view
from transfer_caffe.utils.errors import UserError


@pytest.fixture
def database(tiny):
    return tiny / "train_lmdb"


def require_records(dataset, records):
    assert len(dataset) == len(records)
    for index in range(len(records)):
        image, label = dataset[index]
        array, wanted = records.record(index)
        assert image.dtype == torch.uint8 and label == wanted
        assert image.numpy().tobytes() == array.tobytes() and tuple(image.shape) == array.shape


def test_records_of_a_database_and_of_a_view(database, tmp_path):
    require_records(tc.Dataset(database), Database(database))
    whole = Database(database)
    write_view(tmp_path / "view", whole, np.array([[3, 1], [0, 2], [5, 0]]), {})
    view = tc.Dataset(tmp_path / "view")
    require_records(view, open_records(tmp_path / "view"))
    assert [view[index][1] for index in (0, 1, -1)] == [1, 2, 0]
    with pytest.raises(IndexError, match="record 3 of a database of 3"):
        view[3]


@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of a fork in a process with threads, by some Pythons
def test_workers_read_the_same_batches(database, start):
    dataset = tc.Dataset(database)
    dataset[0]
    alone = list(DataLoader(dataset, batch_size=4))
    shared = list(DataLoader(dataset, batch_size=4, num_workers=2, multiprocessing_context=start))
    assert len(alone) == len(shared)
    for (images, labels), (their_images, their_labels) in zip(alone, shared, strict=True):
        assert torch.equal(images, their_images) and torch.equal(labels, their_labels)


def test_a_pickled_dataset_has_no_open_database(database):
    dataset = tc.Dataset(database, transform=torch.Tensor.float)
    content = pickle.dumps(dataset)
    assert len(content) < 1000
    copied = pickle.loads(content)
    assert torch.equal(copied[2][0], dataset[2][0]) and copied[2][0].dtype == torch.float32


def test_a_path_without_a_database_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no such database"):
        tc.Dataset(tmp_path / "none")
