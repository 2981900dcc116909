"""The contract finds every fault it claims to find, by the test meant for it, and by that test alone."""

import socket
from pathlib import Path

import geobind_faulty as faulty
import pytest

from geobind.testing import ModalityContract, check_modality
from geobind.testing.contract import TESTS
from geobind.testing.instruments import reaches_outside


def raws():
    return [[1.0, 5.0, 2.0, 8.0, 3.0], [2.0, 7.0, 1.0], [9.0, 4.0]]


def long_raws():
    return [[*map(float, range(40)), 1.0], [*map(float, range(40)), 9.0]]


def faults_of(modality, **fields):
    fields = {"bad_raws": ["Mont Blanc", []], "long_raws": long_raws(), "entry_point": False, **fields}
    return check_modality(modality, raws(), **fields)


FILES = [Path(__file__).parent / "third_party" / "faulty" / "profile.json", b"[4.0, 2.0]"]


def eager():
    from geobind_eager import Eager

    return Eager()


# (the modality, the test that must fail, what it must say; ... stands for figures)
FAULTS = [
    (
        eager,
        "imports_without_torch",
        "importing geobind_eager imports torch\n  fix: import it, and what needs it, inside the methods",
    ),
    (
        lambda: faulty.ForgetsAnOption(offset=3.0),
        "options_survive_json",
        "option 'offset' goes into JSON as 3.0 and comes back as 0.0\n"
        "  fix: give it a type that JSON can hold, and do not exclude it",
    ),
    (
        faulty.AlwaysAugments,
        "prepare_is_repeatable",
        "prepare(raws[0]) gives another result the second time (...)\n"
        "  fix: augment only in training; change neither the input nor globals",
    ),
    (
        faulty.AugmentsTheInputItself,
        "prepare_is_repeatable",
        "prepare(raws[0]) gives another result the second time (...)\n"
        "  fix: augment only in training; change neither the input nor globals",
    ),
    (
        faulty.unpicklable,
        "prepares_alike_in_a_worker",
        "the modality does not work in a worker process (AttributeError: Can't ...)\n"
        "  fix: define its class at the top of a module; keep no function, lock or open file in it",
    ),
    (
        faulty.KillsItsProcess,
        "prepares_alike_in_a_worker",
        "the modality does not work in a worker process (BrokenProcessPool: ...)\n"
        "  fix: define its class at the top of a module; keep no function, lock or open file in it",
    ),
    (
        faulty.RemembersItsProcess,
        "prepares_alike_in_a_worker",
        "a worker process prepares another result (...)\n"
        "  fix: use the input and the options alone: no globals, no hash() of a str, no random seed",
    ),
    (
        faulty.ReadsPathsAlone,
        "prepares_a_file_alike_however_it_is_given",
        "prepare refuses profile.json as bytes (TypeError: bytes have no name)\n"
        "  fix: open what is given with geobind.data.open_binary, which takes all of them",
    ),
    (
        faulty.LooksAtTheName,
        "prepares_a_file_alike_however_it_is_given",
        "prepare makes something else of profile.json as bytes than as Path (...)\n"
        "  fix: read the content, whatever holds it; bytes may have no name",
    ),
    (
        faulty.PicturesANumber,
        "a_picture_is_one_that_can_be_shown",
        "picture(raws[0]) returns 4.0\n"
        "  fix: return a PIL image, an array (H, W) or (H, W, C), (array, rate), a str, or None",
    ),
    (
        faulty.KeepsTheLength,
        "prepared_inputs_share_one_layout",
        "prepare(raws[0]) returns float32 (5,), prepare(raws[1]) returns float32 (3,), "
        "prepare(raws[2]) returns float32 (2,), prepare(long_raws[0]) returns float32 (41,)\n"
        "  fix: resize, crop or pad every input to one shape, with and without training",
    ),
    (
        faulty.CropsToTrain,
        "prepared_inputs_share_one_layout",
        "prepare(raws[0]) returns float32 (16,), prepare(raws[0], training=True) returns float32 (8,)\n"
        "  fix: resize, crop or pad every input to one shape, with and without training",
    ),
    (
        faulty.ReturnsAnArray,
        "prepared_inputs_share_one_layout",
        "prepare(raws[0]) returns ndarray\n  fix: return a tensor, or a dict of tensors",
    ),
    (
        faulty.RaisesKeyError,
        "refuses_bad_input_with_a_geobind_error",
        "prepare(bad_raws[0]) raises KeyError, which is no GeobindError\n"
        "  fix: raise geobind.errors.DataError, naming the input, what is wrong, and the fix",
    ),
    (
        faulty.AcceptsAnything,
        "refuses_bad_input_with_a_geobind_error",
        "prepare(bad_raws[0]) accepts 'Mont Blanc'\n  fix: raise geobind.errors.DataError",
    ),
    (
        faulty.RefusesWithoutAWord,
        "refuses_bad_input_with_a_geobind_error",
        "prepare(bad_raws[0]) refuses without a word\n  fix: name the input, what is wrong, and the fix",
    ),
    (
        faulty.IgnoresTheWidth,
        "embeds_to_any_width",
        "encoder(width=40) maps 1 inputs to float32 (1, 32)\n"
        "  fix: return float (1, 40), whatever the batch size",
    ),
    (
        faulty.SqueezesABatchOfOne,
        "embeds_to_any_width",
        "encoder(width=32) maps 1 inputs to float32 (32,)\n"
        "  fix: return float (1, 32), whatever the batch size",
    ),
    (
        faulty.ReturnsATuple,
        "embeds_to_any_width",
        "the encoder returns tuple\n  fix: return one tensor",
    ),
    (
        faulty.DividesByZero,
        "embeddings_are_finite",
        "embeddings hold NaN or infinity\n  fix: look for a division by zero or the logarithm of zero",
    ),
    (
        faulty.IgnoresItsInput,
        "different_inputs_embed_differently",
        "raws[0] and raws[1] embed alike\n  fix: let prepare keep what differs, and the encoder read it",
    ),
    (
        faulty.EmbedsOnlyTheScale,
        "different_inputs_embed_differently",
        "raws[0] and raws[1] embed alike\n  fix: let prepare keep what differs, and the encoder read it",
    ),
    (
        faulty.CutsTheEnd,
        "long_inputs_keep_their_end",
        "long_raws[0] and long_raws[1] embed alike\n"
        "  fix: pool, or truncate and keep the end-of-text token, if the encoder reads there",
    ),
    (
        faulty.CentresTheBatch,
        "batch_mates_do_not_matter",
        "raws[0] embeds differently alone than in a batch\n"
        "  fix: reduce over no batch axis; in eval mode, normalise by running statistics",
    ),
    (
        faulty.DropsOutForEver,
        "evaluation_is_repeatable",
        "a batch embeds differently each time\n  fix: F.dropout needs training=self.training",
    ),
    (
        faulty.CountsBatches,
        "evaluation_changes_nothing",
        "forward in eval mode changes batches\n  fix: update state only in training",
    ),
    (
        faulty.Detaches,
        "a_gradient_reaches_every_weight",
        "embeddings are cut off from every weight\n  fix: use no no_grad(), detach() or .data in forward",
    ),
    (
        faulty.HasASpareLayer,
        "a_gradient_reaches_every_weight",
        "no gradient reaches spare.weight, spare.bias\n  fix: use it, remove it, or name it in `unused`",
    ),
    (
        faulty.HasNothingToTrain,
        "a_gradient_reaches_every_weight",
        "role is 'trainable' but no parameter asks for a gradient\n  fix: declare role = 'frozen'",
    ),
    (
        faulty.AsksAHost,
        "builds_without_weights_or_network",
        "encoder(pretrained=False) looks up 127.0.0.1\n  fix: build the architecture alone",
    ),
    (
        faulty.ReadsWeights,
        "builds_without_weights_or_network",
        "encoder(pretrained=False) opens no_such_folder/profile.safetensors\n"
        "  fix: build the architecture alone",
    ),
    (
        faulty.HidesAWeight,
        "weights_reload",
        "an encoder that loads another's state_dict embeds differently\n"
        "  fix: register what embeddings depend on as parameters or persistent buffers",
    ),
]


def test_a_sound_modality_has_no_faults():
    assert faults_of(faulty.Profile(), files=FILES) == []


@pytest.mark.slow
@pytest.mark.parametrize(("modality", "test", "message"), FAULTS, ids=[test for _, test, _ in FAULTS])
def test_each_fault_fails_the_test_meant_for_it_and_no_other(modality, test, message):
    (fault,) = faults_of(modality(), files=FILES if "file" in test else ())
    before, _, after = f"test_{test}: {message}".partition("...")
    assert fault.startswith(before) and fault.endswith(after)
    assert "..." in message or fault == before


def test_evaluation_may_see_another_shape_than_training_if_that_is_said_but_only_one():
    several = "test_prepared_inputs_share_one_layout"
    assert several not in "".join(faults_of(faulty.CropsToTrain(), one_layout=False))
    assert several in "".join(faults_of(faulty.KeepsTheLength(), one_layout=False))


def test_a_modality_that_is_not_installed_fails_by_its_entry_point_alone(monkeypatch):
    monkeypatch.setattr("geobind.plugins.list_entry_points", list)
    assert faults_of(faulty.Profile(), entry_point=True) == [
        "test_is_found_by_its_entry_point: no modality named 'profile'\n"
        "  installed: none (is geobind itself installed? pip install -e .)\n"
        '  fix: add [project.entry-points.geobind] profile = "geobind_faulty" to pyproject.toml, '
        "and install it again"
    ]


def test_an_installed_copy_of_the_class_is_not_taken_for_it(thermal):
    from geobind_thermal import Thermal

    class Edited(Thermal):
        pass

    contract = type("TestEdited", (ModalityContract,), {"modality": Edited()})()
    with pytest.raises(AssertionError) as failure:
        contract.test_is_found_by_its_entry_point()
    assert str(failure.value) == (
        "'thermal' of geobind-thermal 0.1.0 [thermal] is another class, geobind_thermal.Thermal\n"
        f'  fix: [project.entry-points.geobind] thermal = "{__name__}" must lead to '
        f"{__name__}.{Edited.__qualname__}; uninstall old copies"
    )


def test_every_test_of_the_contract_has_a_modality_that_fails_it():
    faulted = {f"test_{test}" for _, test, _ in FAULTS} | {"test_is_found_by_its_entry_point"}
    assert faulted == set(TESTS)


def test_a_frozen_modality_may_have_nothing_to_train(monkeypatch):
    monkeypatch.setattr(faulty.HasNothingToTrain, "role", "frozen")
    assert faults_of(faulty.HasNothingToTrain()) == []


def test_a_cut_that_loses_the_end_of_text_token_is_found():
    # The fifteenth word differs: it fits beside the end of the text, but a larger word comes before it.
    long_raws = [[900.0, *map(float, range(13)), word, *map(float, range(30))] for word in (1.0, 9.0)]
    assert faults_of(faulty.Words(), long_raws=long_raws) == []
    (fault,) = faults_of(faulty.Words(keeps_the_end=False), long_raws=long_raws)
    assert fault.startswith("test_long_inputs_keep_their_end: long_raws[0] and long_raws[1] embed alike")


def test_batch_norm_left_in_training_mode_is_found_by_what_it_reads_and_by_what_it_writes():
    mates, changes = faults_of(faulty.LeavesBatchNormOn())
    assert mates.startswith(
        "test_batch_mates_do_not_matter: raws[0] embeds differently alone than in a batch"
    )
    assert changes.startswith(
        "test_evaluation_changes_nothing: forward in eval mode changes "
        "norm.running_mean, norm.running_var, norm.num_batches_tracked"
    )


def test_parameters_named_in_unused_need_no_gradient():
    assert faults_of(faulty.HasASpareLayer(), unused=["spare.*"]) == []


def test_one_raw_input_is_not_enough_to_judge_by():
    contract = type(
        "TestProfile", (ModalityContract,), {"modality": faulty.Profile(), "raws": [[1.0, 2.0]]}
    )()
    with pytest.raises(Exception, match=r"^TestProfile.raws needs two valid inputs or more, that differ$"):
        contract.test_prepare_is_repeatable()


def test_the_watch_sees_through_a_handler_that_catches_everything_and_ends_with_the_action():
    def hide():
        try:
            socket.create_connection(("localhost", 9))
        except Exception:
            return

    assert reaches_outside(hide) == "looks up localhost"
    hide()
    assert reaches_outside(lambda: None) is None


class TestProfile(ModalityContract):
    """The class is the contract under pytest: inherited, every test is collected and run."""

    modality = faulty.Profile()
    raws = raws()
    bad_raws = ["Mont Blanc", []]
    long_raws = long_raws()
    entry_point = False
