"""Batches built on a device (here the CPU in its place) are bit-identical to the host's, wherever the records are."""

import gc
import itertools
import threading
import time

import lmdb
import numpy as np
import pytest
import torch
from support.streams import Cuda, plain
from support.waiting import PATIENCE

from transfer_caffe.engine.__main__ import main
from transfer_caffe.engine.batches import resident, staging
from transfer_caffe.engine.batches.transform import OnDevice, Transformer
from transfer_caffe.engine.layers import Context, data
from transfer_caffe.engine.layers.data import Data, Images
from transfer_caffe.engine.layers.sources import ImageData
from transfer_caffe.formats.datum import raw_datum
from transfer_caffe.formats.proto import array_to_blob, parse_text, write_binary
from transfer_caffe.formats.proto.caffe_pb2 import Datum, LayerParameter, TransformationParameter
from transfer_caffe.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("logged")

COUNT, SIZE, CROP, BATCH = 10, (8, 9), 5, 4
GIB = 1 << 30
DEVICE, HOST, NOWHERE, SPLIT = "device", "host", "nowhere", "split"
TIERS = [DEVICE, HOST, NOWHERE, SPLIT]
MEANS = ["", 'mean_file: "mean{}.binaryproto"', "mean_value: 100.3", "VALUES"]


def write(name, arrays, labels=None):
    """Write a database of arrays (height, width, channels) of bytes or floats."""
    with lmdb.open(name, map_size=1 << 24) as env, env.begin(write=True) as transaction:
        for index, array in enumerate(arrays):
            label = index if labels is None else labels[index]
            if array.dtype == np.uint8:
                value = raw_datum(array, label)
            else:
                height, width, channels = array.shape
                value = Datum(channels=channels, height=height, width=width, label=label)
                value.float_data.extend(array.transpose(2, 0, 1).ravel().tolist())
                value = value.SerializeToString()
            transaction.put(f"{index:08d}_x".encode(), value)


@pytest.fixture(autouse=True)
def _databases(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw = np.random.RandomState(0)
    for channels in (1, 3):
        write(f"db{channels}", draw.randint(0, 256, (COUNT, *SIZE, channels)).astype(np.uint8))
        mean = draw.rand(1, channels, *SIZE).astype(np.float32) * 200
        write_binary(f"mean{channels}.binaryproto", array_to_blob(mean))


@pytest.fixture
def tier(monkeypatch):
    """A function that enables building batches on the device, with the records in the given place."""

    def choose(where: str) -> None:
        monkeypatch.setattr(Images, "_made_by_device", ("cpu",))
        # for the split: room for 7 records of 3 channels
        some = resident.reserve(80 * GIB) + 7 * SIZE[0] * SIZE[1] * 3
        free = {DEVICE: 80 * GIB, SPLIT: some}.get(where, 0)
        monkeypatch.setattr(resident, "device_memory", lambda _: (free, 80 * GIB))
        monkeypatch.setattr(resident, "available_memory", lambda: 80 * GIB * (where in (HOST, SPLIT)))

    return choose


def layer(transform="", source="db3", training=True, batch=BATCH, more="", top='top: "data" top: "label"'):
    text = f'name: "d" type: "Data" {top} transform_param {{ {transform} }} '
    text += f'data_param {{ source: "{source}" batch_size: {batch} backend: LMDB {more} }}'
    made = Data(parse_text(text, LayerParameter(), ""), Context(1, torch.device("cpu"), training))
    made.setup([])
    return made


def batches(made, numbers):
    return [made.forward([], number) for number in numbers]


def require_same(ours, expected):
    for (images, labels), (host_images, host_labels) in zip(ours, expected, strict=True):
        assert images.dtype == host_images.dtype == torch.float32 and images.shape == host_images.shape
        assert images.numpy().tobytes() == host_images.numpy().tobytes()
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert labels.dtype == host_labels.dtype and torch.equal(labels, host_labels)


@pytest.mark.parametrize("where", TIERS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("training", [True, False])
def test_all_transformations_give_the_bits_of_the_host(tier, where, channels, training):
    numbers = (0, 1, 2, 3, 9)  # beyond the last record, and not consecutive
    cases = []
    for crop, mirror, mean, scale in itertools.product(
        ("", f"crop_size: {CROP}"), ("", "mirror: true"), MEANS, (1, 0.017)
    ):
        values = " ".join(f"mean_value: {10.7 + value}" for value in range(channels))
        cases.append(f"{crop} {mirror} {mean.format(channels).replace('VALUES', values)} scale: {scale}")
    expected = [batches(layer(case, f"db{channels}", training), numbers) for case in cases]
    tier(where)
    whole = DEVICE if where == SPLIT and channels == 1 else where  # there is room for all of them
    for case, host in zip(cases, expected, strict=True):
        made = layer(case, f"db{channels}", training)
        assert made.resident is (whole == DEVICE)
        assert made.keeps_records is (where == HOST)
        assert (made._copy is not None and made._copy.split == resident.Split(7, COUNT)) is (whole == SPLIT)
        require_same(batches(made, numbers), host)
        del made


@pytest.mark.parametrize("where", TIERS)
def test_rand_skip_and_a_batch_of_more_than_all_records(tier, where):
    crop = f"crop_size: {CROP} mirror: true"

    def all_of_them():
        return batches(layer(crop, more="rand_skip: 7"), (0, 1)) + batches(layer(crop, "db1", batch=23), (0, 1))

    expected = all_of_them()
    tier(where)
    require_same(all_of_them(), expected)


def test_without_a_label_top_there_are_images_alone(tier):
    for where in TIERS:
        tier(where)
        assert len(layer(top='top: "data"').forward([], 0)) == 1


def test_records_of_several_sizes_and_floats_are_never_kept_and_come_out_as_on_the_host(tier, capfd):
    draw = np.random.RandomState(1)
    write("sizes", [draw.randint(0, 256, (8 + index % 3 // 2, 9, 3)).astype(np.uint8) for index in range(COUNT)])
    write("floats", draw.standard_normal((COUNT, 6, 6, 2)).astype(np.float32))
    cases = [("crop_size: 5 mirror: true mean_value: 3", "sizes"), ("crop_size: 5 scale: 0.3", "floats")]
    expected = [batches(layer(*case), range(6)) for case in cases]
    with pytest.MonkeyPatch.context() as small:
        small.setattr(data, "KEEP_BYTES", 0)
        require_same(batches(layer(*cases[0]), range(6)), expected[0])
    tier(DEVICE)
    for case, host in zip(cases, expected, strict=True):
        made = layer(*case)
        assert not made.resident and not made.keeps_records
        assert (made._copy is None) == (case[1] == "floats")  # which is known from the first record
        require_same(batches(made, range(6)), host)
    said = capfd.readouterr().err
    assert "sizes: not kept in memory: record 2 is [3, 9, 9], not the shape of the first record" in said


def test_floats_amid_bytes_are_refused_where_the_device_takes_bytes(tier):
    write("mixed", [np.zeros((6, 6, 1), np.uint8)] * 5 + [np.full((6, 6, 1), 0.5, np.float32)])
    tier(DEVICE)
    made = layer(source="mixed")
    made.forward([], 0)
    with pytest.raises(UserError, match=r"layer 'd' \(Data\): mixed has a record of floats in batch 1, but the first"):
        made.forward([], 1)


def test_images_that_a_list_names_are_kept_too(tier, tmp_path, monkeypatch):
    import cv2

    for index in range(10):
        cv2.imwrite(f"{index}.png", np.full((6, 6, 3), index, np.uint8))
    (tmp_path / "list.txt").write_text("".join(f"{index}.png {index}\n" for index in range(10)))
    text = 'name: "d" type: "ImageData" top: "data" top: "label" '
    text += 'image_data_param { source: "list.txt" batch_size: 4 shuffle: true }'

    def made():
        each = ImageData(parse_text(text, LayerParameter(), ""), Context(1, torch.device("cpu"), True))
        each.setup([])
        return each

    expected = batches(made(), range(4))
    tier(DEVICE)
    ours = made()
    assert ours.resident
    require_same(batches(ours, range(4)), expected)
    del ours
    ImageData._order.cache_clear()  # holds the layer
    gc.collect()
    monkeypatch.setattr(resident, "device_memory", lambda _: (5 * 6 * 6 * 3, 0))
    monkeypatch.setattr(resident, "available_memory", lambda: GIB)
    ours = made()  # in a random order a batch may have any number of records from the host
    ours.prepare(0)
    assert ours._copy is not None and ours._copy.split == resident.Split(5, 10)
    require_same(batches(ours, range(4)), expected)


def test_records_lie_on_the_device_where_it_has_room_else_on_the_host_else_they_are_read_anew(monkeypatch, capfd):
    bytes_needed = COUNT * SIZE[0] * SIZE[1] * 3
    gc.collect()  # frees memory that earlier tests have promised
    monkeypatch.setattr(Images, "_made_by_device", ("cpu",))
    # 15% of the total, at most 8 GiB, is reserved
    for free, total, host, expected in [
        (bytes_needed + 150, 1000, 0, (True, False)),
        (bytes_needed + 149, 1000, bytes_needed // 5, (False, False)),  # one of them does not fit
        (bytes_needed // 10 + 150, 1000, GIB, (False, True)),  # one in ten is too few for a split
        (bytes_needed + 8 * GIB, 100 * GIB, 0, (True, False)),
        (bytes_needed + 8 * GIB - 1, 100 * GIB, 100, (False, False)),  # nor is there room for it on the host
        (0, 1000, bytes_needed, (False, False)),
    ]:
        monkeypatch.setattr(resident, "device_memory", lambda _, numbers=(free, total): numbers)
        monkeypatch.setattr(resident, "available_memory", lambda host=host: host)
        made = layer()
        assert (made.resident, made.keeps_records) == expected
        del made  # otherwise the next one would share its records
    said = [line.split("] ")[1] for line in capfd.readouterr().err.splitlines() if "decoded in" not in line]
    assert said[0] == "db3: 10 records of 8x9x3, 0.0 GiB decoded, are kept on cpu, which has room for 0.0 GiB"
    more = "9 of them are kept there, the others in the host's memory, which has room for 0.0 GiB"
    assert said[1].endswith(f"decoded: cpu has room for 0.0 GiB; {more}")
    assert said[2].endswith("they are kept in the host's memory, which has room for 0.9 GiB")
    for line in said[4:]:
        assert "the host's memory for 0.0 GiB; the records are decoded again for each batch, by " in line


@pytest.mark.parametrize(("first", "count"), [(1, 10), (7, 10), (9, 10), (3, 40), (640_000, 1_281_167)])
def test_the_parts_of_a_split_are_evenly_spread_and_each_record_has_a_place_of_its_own(first, count):
    split = resident.Split(first, count)
    places = np.arange(min(count, 2000))
    in_first, slots = split.slots(places)
    for part in (in_first, ~in_first):
        assert slots[part].tolist() == list(range(part.sum()))
    assert split.before(count) == first
    shares = [int((~in_first)[begin : begin + 5].sum()) for begin in range(len(places) - 4)]
    assert max(shares) <= 5 - split.before(5)  # as many windows as there is memory for
    assert max(shares) - min(shares) <= 1


def test_training_and_test_net_share_one_copy_and_the_test_nets_own_comes_second(monkeypatch, capfd):
    monkeypatch.setattr(Images, "_made_by_device", ("cpu",))
    size = COUNT * SIZE[0] * SIZE[1]
    gc.collect()
    monkeypatch.setattr(resident, "device_memory", lambda _: (int(3.5 * size), 0))
    monkeypatch.setattr(resident, "available_memory", lambda: 0)
    train, test, other = layer(), layer(training=False), layer(source="db1")
    other.forward([], 0)  # it runs first, but the memory was assigned before
    assert not other.resident and train.resident and test.resident
    assert train._copy is test._copy
    assert capfd.readouterr().err.count("records decoded in") == 1
    assert layer("force_gray: true")._copy is not train._copy
    key = train.identity()
    del train, test, other
    assert (torch.device("cpu"), key) not in resident._copies


@pytest.mark.parametrize("where", TIERS)
def test_make_gives_what_was_prepared_from_tensors_that_stay_where_they_are(tier, where):
    transform = f"crop_size: {CROP} mirror: true"
    expected = batches(layer(transform), range(12))
    tier(where)
    made = layer(transform)
    made.prepare(0)
    device = made._batches()
    fixed = [device.drawn, device._pixels, device._labels]
    fixed += [] if device._windows is None else [device._windows, device._slots]
    places = [tensor.data_ptr() for tensor in fixed]
    made.prepares = False  # as if a graph had captured `make`
    got = []
    for number in (0, 1, 2, 7, 8, 3):
        made.prepare(number)
        got.append(made.forward([], 99))
    require_same(got, [expected[number] for number in (0, 1, 2, 7, 8, 3)])  # earlier tops are not overwritten
    require_same([made.make()], [expected[3]])
    assert places == [tensor.data_ptr() for tensor in fixed]


@pytest.mark.parametrize("where", TIERS)
def test_a_training_with_tests_ends_with_the_bytes_that_it_has_on_the_host(tier, where, tiny):
    final = tiny / "snap" / "tiny_iter_20.caffemodel"
    assert main(["train", "--solver", "solver.prototxt"]) == 0
    expected = final.read_bytes()
    final.unlink()
    tier(where)
    assert main(["train", "--solver", "solver.prototxt"]) == 0
    assert final.read_bytes() == expected


def test_nothing_on_the_device_looks_at_a_value():
    """Tensors on the meta device have no values, so any operation that reads a value fails."""
    param = TransformationParameter(crop_size=CROP, mirror=True, mean_file="mean3.binaryproto", scale=0.5)
    meta = torch.device("meta")
    made = OnDevice(Transformer(param, (3, *SIZE), True, ""), meta)
    drawn = torch.empty((3, 6), dtype=torch.int64, device=meta)
    records = torch.empty((COUNT, *SIZE, 3), dtype=torch.uint8, device=meta)
    assert made.cut(records, drawn[0], drawn).shape == (6, 3, CROP, CROP)
    assert made.finish(records[:6, :CROP, :CROP], drawn).shape == (6, 3, CROP, CROP)
    assert made.mix(records, records[:2, :CROP, :CROP], drawn[0], drawn).shape == (6, 3, CROP, CROP)


@pytest.mark.parametrize("ahead", [0, 2])
def test_no_buffer_is_written_before_its_last_copy_is_done(monkeypatch, ahead):
    done: dict[int, bool] = {}

    class Watched(staging.Buffer):
        def wait(self):
            done[id(self.arrays[0])] = True

        def send(self, targets):
            super().send(targets)
            done[id(self.arrays[0])] = False

    def fill(arrays, batch):
        assert done[id(arrays[0])]
        arrays[0][:] = batch

    monkeypatch.setattr(staging, "Buffer", Watched)
    target = torch.zeros(2, dtype=torch.int64)
    ring = staging.Staging([target], fill, ahead)
    for number in (0, 1, 2, 3, 4, 5, 6, 20, 21, 3, 4):
        ring.send(number)
        assert target.tolist() == [number, number]
    assert len(done) == ahead + staging.SPARE


def test_batches_are_made_ahead_by_several_threads_but_not_without_end_and_come_in_order():
    most = 3
    started, together = [], threading.Barrier(most, timeout=PATIENCE)

    def fill(arrays, batch):
        started.append(batch)
        if batch < most:  # the first ones finish after all of them have started
            together.wait()
            time.sleep(0.01 * (most - batch))  # and then mostly in reverse order
        arrays[0][:] = batch

    target = torch.zeros(1)
    ring = staging.Staging([target], fill, most)
    for number in range(20):
        ring.send(number)
        assert target.item() == number and max(started) <= number + most


def test_an_error_is_raised_when_its_batch_is_due_and_not_before():
    def fill(arrays, batch):
        if batch == 2:
            raise UserError("record 8 is damaged")

    ring = staging.Staging([torch.zeros(1)], fill, 4)
    ring.send(0)
    ring.send(1)
    for _ in range(9):  # and a program that continues gets the error again
        with pytest.raises(UserError, match="record 8"):
            ring.send(2)
    ring.send(3)


@pytest.mark.parametrize("where", [*TIERS, None])
def test_damaged_records_and_wrong_labels_are_the_same_errors_everywhere(tier, where):
    draw = np.random.RandomState(2)
    write("labels", draw.randint(0, 256, (COUNT, 8, 9, 3)).astype(np.uint8), [0, 1, 2, 0, 1, 7, 0, -1, 2, 0])
    write("damaged", draw.randint(0, 256, (COUNT, 8, 9, 3)).astype(np.uint8))
    with lmdb.open("damaged") as env, env.begin(write=True) as transaction:
        transaction.put(b"00000005_x", b"\xff\xff")
        transaction.put(b"00000007_x", b"\xff\xff")
    if where:
        tier(where)
    made = layer(source="labels")
    made.limit_labels(3, "loss")
    expected = r"layer 'd' \(Data\): record 5 of labels has label 7, but layer 'loss' has the classes 0 to 2 only"
    with pytest.raises(UserError, match=expected):
        batches(made, range(2))
    made = layer(source="damaged")
    with pytest.raises(UserError, match=r"damaged: record '00000005_x': damaged: it does not parse as a Datum"):
        batches(made, range(2))
    assert not made._copy or not any(made._copy.promised)


def test_loading_uses_several_threads_and_tells_how_far_it_is(monkeypatch, capfd):
    now = itertools.count()
    monkeypatch.setattr(resident, "CHUNK_BYTES", 4)
    monkeypatch.setattr(resident, "threads", lambda: 3)
    seen, together = set(), threading.Barrier(3, timeout=PATIENCE)

    class Records:
        shape = (1, 2, 2)

        def __len__(self):
            return 40

        def record(self, index):
            seen.add(threading.get_ident())
            if index < 3:  # each of the first ones finishes after all of them have started
                together.wait()
            return np.full(self.shape, index, np.uint8), index

    monkeypatch.setattr(resident.time, "monotonic", lambda: float(next(now)))
    pixels = torch.zeros((40, 2, 2, 1), dtype=torch.uint8)
    labels = resident.load(Records(), pixels, "x", resident.say)
    assert labels.tolist() == list(range(40)) and (pixels == torch.arange(40)[:, None, None, None]).all()
    assert len(seen) == 3
    said = capfd.readouterr().err
    assert "x: 10 of 40 records decoded, 30 s left" in said and "x: 20 of 40 records decoded, 20 s left" in said
    assert said.count(" left") == 3 and "x: 40 records decoded in 41.0 s" in said


@pytest.mark.parametrize("first", [40, 13])
def test_records_reach_a_gpu_through_buffers_that_are_not_written_before_their_last_copy_is_done(first, monkeypatch):
    monkeypatch.setattr(resident, "CHUNK_BYTES", 12)  # 3 records
    monkeypatch.setattr(resident, "threads", lambda: 2)
    cuda = Cuda(monkeypatch)

    class Records:
        shape = (1, 2, 2)

        def __len__(self):
            return 40

        def record(self, index):
            return np.full(self.shape, index + 1, np.uint8), index

    pixels = cuda.tensor((first, 2, 2, 1), dtype=torch.uint8)
    rest = torch.zeros((40 - first, 2, 2, 1), dtype=torch.uint8)
    labels = resident.load(Records(), pixels, "x", resident.say, rest if len(rest) else None)
    assert labels.tolist() == list(range(40))
    in_first, _ = resident.Split(first, 40).slots(np.arange(40))
    for part, expected in ((plain(pixels), in_first), (rest, ~in_first)):
        assert (part == torch.from_numpy(np.flatnonzero(expected) + 1)[:, None, None, None]).all()
    assert len(cuda.pinned) == len(cuda.events) == 4  # one for each thread, and two


def test_a_copy_for_which_there_is_no_memory_any_more_is_given_up(tier, capfd):
    tier(DEVICE)
    expected = layer().forward([], 0)
    made = layer()
    assert made._copy is not None

    def fetch():
        raise torch.OutOfMemoryError("CUDA out of memory")

    made._copy._fetch = fetch
    made._device = None
    require_same([made.forward([], 0)], [expected])
    assert not made.resident and not any(made._copy.promised)
    why = "not kept in memory: there is not enough free memory any more; the records are decoded again for each batch"
    assert why in capfd.readouterr().err


def test_memory_on_the_host_is_promised_to_one_source_only(monkeypatch):
    monkeypatch.setattr(Images, "_made_by_device", ("cpu",))
    size = COUNT * SIZE[0] * SIZE[1]
    gc.collect()
    monkeypatch.setattr(resident, "device_memory", lambda _: (0, 0))
    monkeypatch.setattr(resident, "reserve", lambda _: 0)
    monkeypatch.setattr(resident, "available_memory", lambda: int(3.5 * size))
    first, second = layer(), layer(source="db1")
    assert first._copy is not None and second._copy is None
    first.prepare(0)  # from now on its memory is taken, not promised
    third = layer(source="db1", training=False)
    assert third._copy is not None


@pytest.mark.parametrize(("where", "ahead"), [(DEVICE, 0), (SPLIT, 4), (HOST, 4), (NOWHERE, 3)])
def test_batches_are_made_ahead_as_far_as_the_host_has_work(tier, where, ahead, monkeypatch):
    """Nothing is prefetched if all records are on the device, a few batches from memory, and one for each decoder."""
    monkeypatch.setattr(resident, "threads", lambda: 3)
    tier(where)
    made = layer()
    made.prepare(0)
    assert made._batches().staging._ahead == ahead


@pytest.mark.parametrize("mean", ['mean_file: "mean3.binaryproto"', "mean_value: 100.3", ""])
def test_images_in_bf16_are_those_of_float32_rounded_once(mean):
    param = parse_text(f"crop_size: {CROP} mirror: true scale: 0.017 {mean}", TransformationParameter(), "")
    transformer = Transformer(param, (3, *SIZE), True, "")
    drawn = torch.from_numpy(transformer.draws(np.random.default_rng(0), 4, transformer.shape))
    records = torch.randint(0, 256, (4, *SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    given = records, torch.arange(4), drawn
    exact, low = (
        OnDevice(transformer, torch.device("cpu"), dtype).cut(*given) for dtype in (torch.float32, torch.bfloat16)
    )
    assert torch.equal(low, exact.bfloat16())


def test_each_device_has_a_copy_of_its_own(monkeypatch):
    monkeypatch.setattr(resident, "device_memory", lambda _: (80 * GIB, 80 * GIB))
    made = layer()
    copies = [
        resident.copy_of(made.records, "a key", "db3", torch.device("cuda", index)) for index in (0, 1, 0)
    ]  # fmt: skip
    assert copies[0] is copies[2] is not copies[1] is not None


def test_a_record_with_other_channels_is_the_same_error_as_on_the_host(tier):
    draw = np.random.RandomState(0)
    write("channels", [draw.randint(0, 256, (*SIZE, channels)).astype(np.uint8) for channels in (3, 3, 1, 3)])
    for where in (None, DEVICE, SPLIT):
        if where:
            tier(where)
        with pytest.raises(UserError, match=r"record 2 of channels is \[1, 8, 9\], the first record is \[3, 8, 9\]"):
            layer(source="channels").forward([], 0)


def test_a_buffer_that_a_thread_still_writes_is_not_given_to_another(monkeypatch):
    go, busy = threading.Event(), set()

    def fill(arrays, batch):
        assert id(arrays[0]) not in busy
        busy.add(id(arrays[0]))
        if batch == 1:
            assert go.wait(PATIENCE)
        arrays[0][:] = batch
        busy.remove(id(arrays[0]))

    target = torch.zeros(1)
    ring = staging.Staging([target], fill, 2)
    ring.send(0)  # batches 1 and 2 are being made
    timer = threading.Timer(0.3, go.set)
    timer.start()
    for batch in (9, 20, 31, 42, 53):
        ring.send(batch)
        assert target.item() == batch
    timer.join()
