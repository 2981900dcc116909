"""A hub that cannot be reached: asked once, quickly, in silence; what the cache holds is used."""

import logging
import socket
from pathlib import Path

import pytest
from huggingface_hub import constants

from geobind import hub
from geobind.bundles.bundle import fetch_folder, publish
from geobind.errors import CheckpointError, GeobindError
from geobind.towers.weights import find_weights_file


def test_a_closed_port_is_named_with_its_address_and_the_fix(no_hub, caplog):
    with pytest.raises(CheckpointError) as caught:
        find_weights_file("someone/weights")
    message = str(caught.value)
    assert message.startswith("the weights of someone/weights cannot be had: ")
    assert f"{no_hub} cannot be reached (" in message
    assert "HF_HOME" in message and "name a local .safetensors file" in message
    assert "\n" not in message
    assert not caplog.records, "the library's retries are silent"


def test_a_hub_out_of_reach_is_asked_once(no_hub, monkeypatch):
    asked = []
    monkeypatch.setattr(hub, "_ask", lambda endpoint, patience: asked.append(endpoint) or "nobody is there")
    for name in ("one", "two"):
        with pytest.raises(CheckpointError, match="nobody is there"):
            find_weights_file(f"someone/{name}")
    assert asked == [no_hub]


def test_what_the_cache_holds_is_loaded_without_the_hub(no_hub):
    home = Path(constants.HF_HUB_CACHE) / "models--someone--weights"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("0" * 40)
    (home / "snapshots" / ("0" * 40)).mkdir(parents=True)
    file = home / "snapshots" / ("0" * 40) / "model.safetensors"
    file.write_bytes(b"weights")
    assert find_weights_file("someone/weights") == file
    assert not constants.HF_HUB_OFFLINE


def test_a_hub_that_accepts_and_never_answers_is_given_up(no_hub, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert hub.check_reachability(patience=0.2) is not None


def test_without_leave_to_ask_the_hub_is_not_asked(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "_ask", lambda *_: pytest.fail("asked"))
    with pytest.raises(CheckpointError, match=r"the hub is not asked \(HF_HUB_OFFLINE is set\)"):
        find_weights_file("someone/weights")


def test_a_bundle_is_not_waited_for_either(no_hub, tmp_path):
    with pytest.raises(CheckpointError, match=f"no folder 'me/mine', and .*{no_hub} cannot be reached"):
        fetch_folder("me/mine", ["*"])
    with pytest.raises(GeobindError, match="cannot publish 'me/mine': "):
        publish(tmp_path, "me/mine")


def test_a_first_message_to_the_root_logger_does_not_configure_logging(no_hub, monkeypatch):
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    with hub.hub_or_cache():
        logging.info("as open_clip does")
    assert root.handlers == []
