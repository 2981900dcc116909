"""Raw inputs of `Binder.embed`, `classify` and `similarity`, in every container and type."""

import array
import collections
import io
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from toy import Left, Right

from geobind.binder import Binder
from geobind.errors import DataError, PluginError
from geobind.inference import choose_threads, split_inputs
from geobind_audio import Audio
from geobind_ground_image import GroundImage
from geobind_satellite import Satellite
from geobind_text import Text

CLIP = {
    "pretrained": False,
    "model": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
        "text_cfg": {"context_length": 16, "width": 32, "heads": 2, "layers": 1},
    },
}
RESNET = {"model": "test_resnet", "pretrained": False}


@pytest.fixture(scope="module")
def binder():
    modalities = {
        "satellite": Satellite(timm=RESNET, size=32),
        "ground_image": GroundImage(clip=CLIP),
        "audio": Audio(timm=RESNET, seconds=0.2),
        "text": Text(clip=CLIP),
    }
    return Binder(modalities, 16, pretrained=False, seed=0)


class Series:
    """A column as of pandas: neither a sequence nor an iterator, but an array to numpy."""

    ndim = 1

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return self.values

    def __iter__(self):
        return iter(self.values)


def lent(protocol):
    """Make arrays of another library, which numpy reads by one protocol alone."""

    class Lent:
        def __init__(self, values):
            self.values = values

    if protocol == "__array_interface__":
        Lent.__array_interface__ = property(lambda self: self.values.__array_interface__)
    else:
        for name in (protocol, "__dlpack_device__") if protocol == "__dlpack__" else (protocol,):
            setattr(Lent, name, lambda self, *a, _name=name, **k: getattr(self.values, _name)(*a, **k))
    return Lent


def steps(*shape):
    """Values that float16, bfloat16 and 8-bit floats hold exactly, from 0 to 1."""
    return torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(1)).float()


RAWS = {"satellite": steps(3, 40, 48), "ground_image": steps(3, 40, 48), "audio": steps(4000) - 0.5}
FLOATS = [
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
]
VIEWS = {
    "contiguous": lambda x: x,
    "negated view": lambda x: torch._neg_view(-x),
    "with a gradient": lambda x: x.requires_grad_(x.dtype.itemsize >= 2),
    "strided": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "a subclass": lambda x: x.as_subclass(type("Mine", (torch.Tensor,), {})),
    "a parameter": lambda x: torch.nn.Parameter(x, requires_grad=False),
}
ARRAYS = {
    "float64": lambda x: x.astype("f8"),
    "float16": lambda x: x.astype("f2"),
    "long double": lambda x: x.astype(np.longdouble),
    "big-endian": lambda x: x.astype(">f4"),
    "big-endian float16": lambda x: x.astype(">f2"),
    "read-only": lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
    "negative strides": lambda x: np.ascontiguousarray(x[..., ::-1])[..., ::-1],
    "Fortran order": np.asfortranarray,
    "masked, with nothing hidden": np.ma.masked_array,
    "a subclass": lambda x: x.view(type("Mine", (np.ndarray,), {})),
    "__array__": lent("__array__"),
    "__array_interface__": lent("__array_interface__"),
    "__dlpack__": lent("__dlpack__"),
    "a memoryview": memoryview,
}
REFUSED_TENSORS = {
    "sparse": (lambda x: x.to_sparse(), r"is sparse \(torch.sparse_coo\): give x.to_dense\(\)"),
    "sparse rows": (
        lambda x: x.reshape(2, -1).to_sparse_csr(),
        r"is sparse \(torch.sparse_csr\): give x.to_dense",
    ),
    "quantised": (
        lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.quint8),
        r"is quantised \(torch.quint8\): give x.dequantize\(\)",
    ),
    "complex": (lambda x: x.to(torch.complex64), r"is complex \(torch.complex64\): give x.abs\(\)"),
    "meta": (lambda x: x.to("meta"), "is on the meta device, which holds no values"),
    "nested": (lambda x: torch.nested.nested_tensor([x, x]), r"is nested: give list\(x.unbind\(\)\)"),
}
REFUSED_ARRAYS = {
    "objects": (
        lambda x: x.astype(object)[None].repeat(2, 0),
        r"of type object, hold Python objects: .*astype",
    ),
    "complex": (lambda x: x.astype("c8"), "of type complex64, are complex: give their magnitude"),
    "records": (lambda x: x.view([("a", "f4")]), "are records of several fields: choose one field"),
    "times": (lambda x: x.astype("M8[s]"), "are times"),
    "durations": (lambda x: x.astype("m8[s]"), "are durations"),
    "strings": (lambda x: x.astype(str)[None], "are no numbers"),
    "masked": (lambda x: np.ma.masked_greater(x, 0.1), r"some of its values are masked; fill them first"),
    "bytes of no type": (lambda x: x.view("V4"), "are records"),
}


@pytest.mark.parametrize("name", RAWS)
@settings(deadline=None, max_examples=40)
@given(dtype=st.sampled_from(FLOATS), view=st.sampled_from(sorted(VIEWS)))
def test_a_tensor_of_any_float_type_and_layout_embeds_as_float32(binder, name, dtype, view):
    if view == "negated view" and dtype.itemsize == 1:
        view = "contiguous"  # 8-bit floats cannot be negated
    plain = RAWS[name].clone()
    tensor = VIEWS[view](plain.to(dtype))
    assert torch.equal(binder.embed(name, tensor), binder.embed(name, plain))


@pytest.mark.parametrize("name", RAWS)
@settings(deadline=None, max_examples=40)
@given(kind=st.sampled_from(sorted(ARRAYS)))
def test_an_array_in_any_container_embeds_as_a_plain_one(binder, name, kind):
    plain = RAWS[name].numpy().copy()
    assert torch.equal(binder.embed(name, ARRAYS[kind](plain)), binder.embed(name, plain))


@pytest.mark.parametrize("name", RAWS)
@pytest.mark.parametrize("kind", REFUSED_TENSORS)
def test_a_tensor_without_plain_values_is_refused_with_its_type_and_the_fix(binder, name, kind):
    make, message = REFUSED_TENSORS[kind]
    with pytest.raises(DataError, match=rf"input 1 of modality '{name}': the (tensor|sound): {message}"):
        binder.embed(name, [RAWS[name], make(RAWS[name])])


@pytest.mark.parametrize("name", RAWS)
@pytest.mark.parametrize("kind", REFUSED_ARRAYS)
def test_an_array_without_numbers_is_refused_with_its_type_and_the_fix(binder, name, kind):
    make, message = REFUSED_ARRAYS[kind]
    with pytest.raises(DataError, match=rf"input 1 of modality '{name}': the (array|sound): .*{message}"):
        binder.embed(name, [RAWS[name], make(RAWS[name].numpy())])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32, torch.int64, torch.bool])
def test_whole_numbers_of_a_tensor_are_those_of_the_array(dtype):
    unit = dtype == torch.uint8  # 8-bit images count from 0 to 1
    satellite = Satellite(timm=RESNET, size=32, mean=[0.3 if unit else 3], std=[2])
    values = (RAWS["satellite"] * 5).to(dtype)
    assert torch.equal(satellite.prepare(values), satellite.prepare(values.numpy()))


@pytest.mark.parametrize("name", ["satellite", "ground_image"])
def test_a_subclass_of_a_pil_image_is_an_image_and_no_sound(binder, name):
    pixels = (255 * RAWS[name]).byte().permute(1, 2, 0).numpy()

    class Mine(Image.Image):
        pass

    mine = Image.fromarray(pixels)
    mine.__class__ = Mine
    assert torch.equal(binder.embed(name, mine), binder.embed(name, pixels))
    with pytest.raises(DataError, match=r"a sound must be a path, bytes, .* not a Mine"):
        binder.embed("audio", mine)


def test_a_sound_of_a_plain_array_of_python_is_read(binder):
    samples = array.array("f", RAWS["audio"].tolist())
    assert torch.equal(binder.embed("audio", samples), binder.embed("audio", RAWS["audio"]))
    assert torch.equal(binder.embed("audio", (samples, 16_000)), binder.embed("audio", RAWS["audio"]))


def test_a_memoryview_of_a_file_is_one_input(binder):
    file = io.BytesIO()
    Image.fromarray((255 * RAWS["satellite"]).byte().permute(1, 2, 0).numpy()).save(file, "PNG")
    whole = binder.embed("satellite", file.getvalue())
    for raw in (memoryview(file.getvalue()), bytearray(file.getvalue())):
        assert torch.equal(binder.embed("satellite", raw), whole)


@pytest.mark.parametrize("name", RAWS)
def test_nested_lists_of_numbers_are_refused_as_what_they_are(binder, name):
    with pytest.raises(DataError, match=r"input 0 of modality .* not a (list|float)"):
        binder.embed(name, RAWS[name].tolist())


@pytest.mark.parametrize(
    ("name", "batch"),
    [
        ("satellite", RAWS["satellite"].repeat(2, 1, 1, 1)),
        ("ground_image", RAWS["ground_image"].repeat(2, 1, 1, 1).numpy()),
        ("audio", RAWS["audio"].repeat(3, 2, 1)),
        ("audio", RAWS["audio"].repeat(100, 1)),
        ("text", np.array([["a", "b"]])),
        ("text", ("a", "b")),
    ],
)
def test_a_batch_in_one_array_is_told_to_give_a_list(binder, name, batch):
    with pytest.raises(DataError, match=r"input 0 of .*; if these are several inputs, give list\(x\)"):
        binder.embed(name, batch)


def test_the_rows_of_a_batch_given_as_a_list_are_its_inputs(binder):
    batch = torch.stack([RAWS["satellite"], RAWS["satellite"].flip(0)])
    assert torch.equal(binder.embed("satellite", list(batch)), binder.embed("satellite", [*batch]))
    assert len(binder.embed("satellite", list(batch.numpy()))) == 2


WORDS = ["a beach", "a dark wood", "the sea"]
ORDERED = {
    "list": list,
    "generator": iter,
    "numpy strings": np.array,
    "numpy objects": lambda words: np.array(words, dtype=object),
    "numpy bytes": lambda words: np.array(words, dtype="S"),
    "column": lambda words: Series(np.array(words, dtype=object)),
    "values of a dict": lambda words: dict(enumerate(words)).values(),
    "keys of a dict": lambda words: dict.fromkeys(words).keys(),
    "deque": collections.deque,
    "user list": collections.UserList,
    "map": lambda words: map(str, words),
    "reversed": lambda words: reversed(words[::-1]),
}


@pytest.mark.parametrize("kind", ORDERED)
def test_texts_in_any_ordered_container_embed_in_its_order(binder, kind):
    assert torch.equal(binder.embed("text", ORDERED[kind](WORDS)), binder.embed("text", WORDS))


@pytest.mark.parametrize("kind", [kind for kind in ORDERED if kind != "numpy bytes"])
def test_labels_and_templates_in_any_ordered_container_are_names(binder, kind):
    wanted = binder.classify("text", "sand", WORDS, templates=["{}", "at {}"])
    got = binder.classify("text", "sand", ORDERED[kind](WORDS), templates=ORDERED[kind](["{}", "at {}"]))
    assert torch.equal(got, wanted)


def test_a_tuple_of_labels_is_a_list_of_names(binder):
    assert torch.equal(
        binder.classify("text", "sand", tuple(WORDS), templates=("{}",)),
        binder.classify("text", "sand", WORDS),
    )


@pytest.mark.parametrize("unordered", [set(WORDS), frozenset(WORDS)])
def test_a_set_is_refused_because_it_has_no_order(binder, unordered):
    for call in (
        lambda: binder.embed("text", unordered),
        lambda: binder.classify("text", "sand", unordered),
        lambda: binder.classify("text", "sand", {"a": unordered}),
        lambda: binder.classify("text", unordered, WORDS),
        lambda: binder.classify("text", "sand", WORDS, templates={"{}"}),
    ):
        with pytest.raises(DataError, match=r"set has no order, .*: give sorted\(x\)"):
            call()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("beach", "labels must be a list of names, not 'beach'"),
        (7, "labels must be a list of names, not 7"),
        (None, "labels must be a list of names, not None"),
        ([], "no labels to choose from"),
        (np.array([]), "labels must be a list of names"),
        (np.array([], dtype=str), "no labels"),
        ({}, "no labels"),
        ([1, 2], "labels must be names: number 0 is a int, 1"),
        (["a", None], "labels must be names: number 1 is a NoneType"),
        (["a", b"b"], "labels must be names: number 1 is a bytes"),
        (np.array([1.0, 2.0]), "labels must be a list of names"),
        (torch.ones(2), "labels must be a list of names"),
        ({"a": []}, "class 'a' has no examples"),
        ({"a": ["x"], "b": iter(())}, "class 'b' has no examples"),
        (["a", " "], "input 0 of modality 'text': the text given: is empty"),
    ],
)
def test_labels_that_are_no_names_are_refused(binder, labels, message):
    with pytest.raises(DataError, match=message):
        binder.classify("text", "sand", labels)


@pytest.mark.parametrize("templates", ["a photo of {}", [], ["a photo"], [3]])
def test_templates_must_be_a_list_with_a_place_for_the_name(binder, templates):
    with pytest.raises(DataError, match="template"):
        binder.classify("text", "sand", WORDS, templates=templates)


def test_a_missing_value_in_a_column_is_named_by_its_number(binder):
    for missing in (None, float("nan"), 3):
        with pytest.raises(DataError, match="input 1 of modality 'text': a text must be a string"):
            binder.embed("text", Series(np.array(["a", missing, "b"], dtype=object)))


@pytest.mark.parametrize("size", [0, -1, 2.5, "4", None])
def test_a_batch_size_that_is_no_count_is_refused(binder, size):
    with pytest.raises(DataError, match="batch_size must be a whole number of at least 1"):
        binder.embed("text", "a", batch_size=size)
    assert len(binder.embed("text", WORDS, batch_size=np.int64(2))) == 3


def test_a_modality_that_is_no_name_is_refused(binder):
    with pytest.raises(PluginError, match="no modality"):
        binder.embed(["text"], "a")


def test_numbers_in_a_row_are_one_input_and_names_in_a_row_are_many():
    assert split_inputs(np.arange(3)) is None
    assert split_inputs(Series(np.arange(3))) is None
    assert split_inputs(torch.arange(3)) is None
    assert split_inputs({"a": 1}) is None
    assert split_inputs(Series(np.array(["a", "b"], dtype=object))) == ["a", "b"]
    assert split_inputs(np.str_("abc")) is None
    assert split_inputs(np.bytes_(b"abc")) is None
    assert split_inputs(np.array("abc")) is None


ROWS = torch.tensor([[1.0, 0.0, 2.0], [0.5, -1.0, 0.0]])


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.bfloat16(),
        lambda x: x.half(),
        lambda x: x.double(),
        lambda x: x.to(torch.float8_e5m2),
        lambda x: torch._neg_view(-x),
        lambda x: x.clone().requires_grad_(),
        lambda x: x.numpy().astype(">f8"),
        lambda x: x.numpy()[::-1].copy()[::-1],
        lambda x: x.numpy().astype("f2"),
        lambda x: np.ma.masked_array(x.numpy()),
        lambda x: x.tolist(),
        lambda x: list(x),
        lambda x: tuple(x.numpy()),
        lambda x: lent("__array__")(x.numpy()),
        lambda x: lent("__dlpack__")(x.numpy()),
    ],
)
def test_similarity_of_embeddings_of_any_type_is_that_of_float32(make):
    binder = Binder({"left": Left(), "right": Right()}, 8, seed=0)
    wanted = binder.similarity(ROWS, ROWS)
    assert torch.allclose(binder.similarity(make(ROWS), ROWS), wanted)
    assert torch.allclose(binder.similarity(ROWS, make(ROWS)), wanted)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS.to_sparse(), "embeddings: is sparse"),
        (ROWS.to("meta"), "embeddings: is on the meta device"),
        (ROWS.to(torch.complex64), "embeddings: is complex"),
        ([ROWS[0].to_sparse()], "embeddings: is sparse"),
        (torch.ones(2, 3, 4), r"embeddings must be \(N, D\), not of shape \(2, 3, 4\)"),
        (torch.tensor(1.0), r"embeddings must be \(N, D\), not of shape \(\)"),
        (np.array([["a", "b", "c"]]), "are no numbers"),
        (np.array([[1, None, 2]]), "hold Python objects"),
        ([[1.0, 2.0], [1.0]], "of one length"),
        ([ROWS[0], ROWS[0, :2]], "of one length"),
        ("abc", "embeddings must be a tensor or an array"),
        (None, "embeddings must be a tensor or an array"),
        ({1: 2}, "embeddings must be a tensor or an array"),
    ],
)
def test_similarity_of_what_is_no_embedding_is_refused(rows, message):
    binder = Binder({"left": Left(), "right": Right()}, 8, seed=0)
    for a, b in ((rows, ROWS), (ROWS, rows)):
        with pytest.raises(DataError, match=message):
            binder.similarity(a, b)


# Prepared ahead ---------------------------------------------------------------------------------------


class Slow(Left):
    """Prepares inputs in threads in another order than they come in, and counts them."""

    name = "slow"

    def prepare(self, raw, *, training=False):
        number = int(raw[0])
        COUNTS["begun"] += 1
        COUNTS["most"] = max(COUNTS["most"], COUNTS["begun"] - COUNTS["embedded"])
        COUNTS["grad"] |= torch.is_grad_enabled()
        time.sleep(0.004 * (number % 16 < 8))  # the first of two neighbouring shares is ready last
        if number in BROKEN:
            raise DataError("broken")
        return torch.tensor([float(number), *[1.0] * 9])

    def encoder(self, width, *, pretrained=True):
        net = torch.nn.Linear(10, width)
        net.register_forward_hook(lambda *args: COUNTS.update(embedded=COUNTS["embedded"] + len(args[1][0])))
        return net


COUNTS = {}
BROKEN = set()


@pytest.fixture
def slow():
    COUNTS.update(begun=0, embedded=0, most=0, grad=False)
    BROKEN.clear()
    return Binder({"slow": Slow(norm=False)}, 8, seed=0)


@pytest.mark.parametrize("workers", [1, 3, "auto"])
def test_threads_keep_the_order_of_inputs(slow, workers):
    raws = [(float(i),) * 10 for i in range(100)]
    expected = slow.embed("slow", raws, batch_size=16, workers=0)
    assert torch.equal(slow.embed("slow", raws, batch_size=16, workers=workers), expected)
    assert torch.equal(slow.embed("slow", iter(raws), batch_size=16, workers=workers), expected)
    assert not COUNTS["grad"]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_first_broken_input_is_named_whatever_threads_find_first(slow, workers):
    BROKEN.update((35, 42, 61))
    with pytest.raises(DataError, match=r"^input 35 of modality 'slow': broken$"):
        slow.embed("slow", [(float(i),) * 10 for i in range(64)], batch_size=16, workers=workers)


@pytest.mark.parametrize("size", [1, 5, 16])
def test_no_more_than_three_batches_are_in_memory(slow, size):
    slow.embed("slow", [(float(i),) * 10 for i in range(200)], batch_size=size, workers=2)
    assert COUNTS["embedded"] == 200
    assert COUNTS["most"] <= max(3 * size, 2 * min(8, size) + size)


def test_inputs_after_an_error_are_not_prepared(slow):
    BROKEN.add(0)
    with pytest.raises(DataError):
        slow.embed("slow", [(float(i),) * 10 for i in range(1000)], batch_size=16, workers=2)
    assert COUNTS["begun"] <= 48


def test_a_few_inputs_need_no_threads(monkeypatch):
    assert choose_threads("auto", 8) == 0
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(1), raising=False)
    assert choose_threads("auto", 5000) == 0
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(6), raising=False)
    assert choose_threads("auto") == choose_threads("auto", 5000) == 6
    for wrong in (-1, 1.5, True, "all"):
        with pytest.raises(DataError, match="workers must be `auto` or a number of threads"):
            choose_threads(wrong)
