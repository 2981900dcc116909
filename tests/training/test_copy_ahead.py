"""Batches on their way to a GPU: copied one ahead on a stream of their own. Fakes stand for streams here."""

import json
from contextlib import contextmanager

import pytest
import torch
import toy
from toy_runs import losses, same, weights

from geobind import inference
from geobind.inference import copy_ahead, embed_batches, to_device
from geobind.training import stage
from geobind.training.gradients import GradientAccumulator
from geobind.training.run import run

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")


class Event:
    def __init__(self, log, stream):
        self.log, self.number = log, sum(said[:2] == ("record", stream) for said in log)
        self.stream = stream
        log.append(("record", stream))

    def synchronize(self):
        self.log.append(("synchronize", self.stream, self.number))


class Stream:
    def __init__(self, log, name):
        self.log, self.name = log, name

    def record_event(self):
        return Event(self.log, self.name)

    def wait_event(self, event):
        self.log.append(("wait", self.name, event.stream, event.number))


@pytest.fixture
def streams(monkeypatch):
    """What streams are told, the last one in use being `inside`."""
    told, inside = [], ["computing"]
    computing = Stream(told, "computing")

    @contextmanager
    def use(stream):
        inside.append(stream.name)
        yield
        inside.pop()

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: told.append("made") or Stream(told, "copying"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: computing)
    monkeypatch.setattr(torch.cuda, "stream", use)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda _, stream: told.append(("keep", stream.name)))
    inference._find_copy_stream.cache_clear()
    yield told, inside
    inference._find_copy_stream.cache_clear()


@pytest.fixture
def log(streams, monkeypatch):
    """What streams and tensors are told; tensors stay on the CPU."""
    told, inside = streams

    def copy(tensor, *_, **how):
        told.append(("copy", inside[-1], int(tensor.flatten()[0]), how))
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: told.append("pin") or tensor)
    monkeypatch.setattr(torch.Tensor, "to", copy)
    return told


def numbers(count, taken):
    for number in range(count):
        taken.append(number)
        yield f"item {number}", torch.tensor([number])


def test_on_a_cpu_a_batch_is_taken_when_it_is_asked_for_and_is_not_copied():
    taken, batch = [], {"one": torch.rand(2), "two": {"three": torch.rand(2)}}
    assert next(iter(copy_ahead(numbers(3, taken), CPU))) == ("item 0", torch.tensor([0]))
    assert taken == [0]
    ((item, found),) = copy_ahead([("item", batch)], CPU)
    assert item == "item" and found["one"] is batch["one"] and found["two"]["three"] is batch["two"]["three"]
    assert [*copy_ahead([("empty", None)], CPU)] == [("empty", None)]


def test_the_next_batch_is_copied_from_pinned_memory_before_one_is_given_out(log):
    taken = []
    batches = copy_ahead(numbers(3, taken), CUDA)
    assert next(batches)[0] == "item 0" and taken == [0, 1]
    assert log == [
        "made",
        "pin", ("copy", "copying", 0, {"non_blocking": True}), ("record", "copying"),
        "pin", ("copy", "copying", 1, {"non_blocking": True}), ("record", "copying"),
        ("wait", "computing", "copying", 0), ("keep", "computing"),
    ]  # fmt: skip
    assert [item for item, _ in batches] == ["item 1", "item 2"]


def test_the_host_waits_so_that_no_more_than_two_batches_are_worked_on(log):
    for number, _ in enumerate(copy_ahead(numbers(6, []), CUDA)):
        log.append(("compute", number))
    order = [said for said in log if said[0] in ("compute", "synchronize")]
    assert order == [
        ("compute", 0), ("compute", 1),
        ("synchronize", "computing", 0), ("compute", 2),
        ("synchronize", "computing", 1), ("compute", 3),
        ("synchronize", "computing", 2), ("compute", 4), ("compute", 5),
    ]  # fmt: skip


def test_every_tensor_of_a_dict_is_kept_until_it_was_read_and_all_share_one_stream(log):
    batch = {"left": torch.tensor([1]), "right": {"x": torch.tensor([2]), "y": torch.tensor([3])}}
    for _ in range(2):
        assert len([*copy_ahead([("a", batch), ("b", None)], CUDA)]) == 2
    assert log.count("made") == 1
    assert log.count(("keep", "computing")) == 6


def test_what_a_gpu_embeds_comes_in_order_one_behind_what_it_computes(log):
    def encode(batch):
        log.append(("encode", int(batch[0])))
        return batch

    batches = [("a", torch.tensor([0])), ("b", None), ("c", torch.tensor([2]))]
    found = [
        (item, None if rows is None else rows.tolist()) for item, rows in embed_batches(encode, batches, CUDA)
    ]
    assert found == [("a", [0]), ("b", None), ("c", [2])]
    assert [said for said in log if said[0] == "encode"] == [("encode", 0), ("encode", 2)]


def test_other_devices_than_gpus_wait_for_a_copy(log):
    to_device(torch.tensor([4]), torch.device("mps"))
    assert log == [("copy", "computing", 4, {})]


def wheel_run(folder, *overrides, resume=False):
    """Run a stage some of whose rows lack modalities, two are broken, and one modality has dropout."""
    folder.mkdir(exist_ok=True)
    if not resume:
        lines = toy.write_wheel(folder / "wheel.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        rows[4]["hub"] = rows[9]["hub"] = [1.0]
        (folder / "wheel.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    recipe = toy.wheel(folder, "max_broken=0.5", "modalities.hub.dropout=0.2", *overrides)
    return run(recipe, folder / "run", resume=resume).folder


def facts(folder):
    return json.loads((folder / "stages" / "01_one" / "stage.json").read_text())


@pytest.fixture
def ahead(streams, monkeypatch):
    """Take the batches of stages as on a GPU."""
    monkeypatch.setattr(inference, "to_device", lambda batch, _: batch)
    monkeypatch.setattr(stage, "copy_ahead", lambda batches, _: copy_ahead(batches, CUDA))
    return streams[0]


@pytest.mark.usefixtures("toy_registry")
@pytest.mark.parametrize("options", [(), ("stages.0.train=[spoke, rim]",)], ids=["trained", "cached"])
def test_a_stage_whose_batches_are_copied_ahead_is_the_same_to_the_bit(
    options, tmp_path, request, monkeypatch
):
    plain = wheel_run(tmp_path / "plain", *options)
    told = request.getfixturevalue("ahead")
    monkeypatch.setattr(stage.Checkpoint, "due", lambda self, step: step == 4)
    copied = wheel_run(tmp_path / "ahead", *options)
    assert told.count(("record", "copying")) == 12
    assert losses(copied) == losses(plain) and same(weights(copied), weights(plain))
    assert facts(copied)["quarantined"] == facts(plain)["quarantined"]
    assert facts(copied)["quarantined"]

    def die(self, taken, broken):
        if taken.number == 7:
            raise KeyboardInterrupt
        return add(self, taken, broken)

    add = stage.Recorder.add
    monkeypatch.setattr(stage.Recorder, "add", die)
    with pytest.raises(KeyboardInterrupt):
        wheel_run(tmp_path / "again", *options)
    monkeypatch.setattr(stage.Recorder, "add", add)
    resumed = wheel_run(tmp_path / "again", *options, resume=True)
    assert told.count(("record", "copying")) == 12 + 9 + 7
    assert losses(resumed) == losses(plain) and same(weights(resumed), weights(plain))
    assert facts(resumed)["quarantined"] == facts(plain)["quarantined"]


def test_a_chunked_batch_stays_on_the_cpu_and_its_chunks_are_copied():
    class Place:
        device = CUDA

    whole, chunked = (GradientAccumulator(Place(), None, None, chunk) for chunk in (None, 4))
    assert (whole.input_device, chunked.input_device) == (CUDA, CPU)
