"""Messages about words, folders and bundles that cannot be meant."""

import json
import warnings

import pytest
from click.testing import CliRunner
from toy import Left, registry

from geobind import plugins
from geobind.binder import Binder
from geobind.cli import main
from geobind.errors import CheckpointError


def call(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    """A bundle, in the folder of the run that made it."""
    monkeypatch.setattr(plugins, "registry", registry)
    return Binder({"left": Left()}, 8, seed=0).save(tmp_path / "run" / "bundle")


def with_bundle(name):
    """Each command that reads one."""
    yield call("embed", name, "left", "a.png", "--out", "a.npy")
    yield call("eval", name, "--data", "places.csv")
    yield call("verify", name)
    yield call("probe", name, "--data", "places.csv", "--modality", "left")


def test_a_mistyped_command_is_answered_with_the_one_that_may_be_meant():
    result = call("chek", "three_modal")
    assert result.exit_code == 2
    assert "no command 'chek'; did you mean 'check'?" in result.output


def test_a_command_like_no_other_is_answered_with_all_there_are():
    assert "there are run, plan, " in call("xyzzy").output


def test_the_folder_of_a_run_stands_for_its_bundle(bundle):
    for run, itself in zip(with_bundle(bundle.parent), with_bundle(bundle), strict=True):
        assert run.exit_code == itself.exit_code
        assert run.output == itself.output


def test_what_can_be_no_bundle_is_refused_without_asking_the_hub(monkeypatch, tmp_path):
    def snapshot_download(*args, **options):
        raise AssertionError("asked")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    for result in with_bundle(tmp_path / "nowhere"):
        assert result.exit_code == 2
        assert f"no folder '{tmp_path / 'nowhere'}'; give a bundle's folder" in result.output


@pytest.mark.parametrize(
    "words",
    [
        ["embed", "run/bundle", "left", "a.png", "--out"],
        ["data", "split", "places.csv", "--out"],
        ["data", "show", "places.csv", "--out"],
    ],
)
def test_a_folder_is_refused_as_the_file_to_write_before_any_work(words, tmp_path, bundle, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call(*words, tmp_path)
    assert result.exit_code == 2
    assert "is a directory" in result.output


def test_a_bundle_of_another_version_is_warned_of_in_one_line(bundle):
    card = json.loads((bundle / "binder.json").read_text())
    card["plugins"]["left"]["version"] = "0.0.9"
    (bundle / "binder.json").write_text(json.dumps(card))
    lines = call("verify", bundle).output.splitlines()
    assert lines[0].startswith(f"warning: {bundle}: 'left' was made with ")
    assert not any("warn(" in line or ".py:" in line for line in lines)


def test_warnings_of_other_libraries_keep_their_place(monkeypatch, bundle):
    def from_pretrained(name):
        warnings.warn_explicit("old", UserWarning, "lib.py", 7)
        raise CheckpointError("enough")

    monkeypatch.setattr(Binder, "from_pretrained", from_pretrained)
    with pytest.warns(UserWarning, match="old"):
        assert call("verify", bundle).output == "error: enough\n"
