"""Data that go away while they are read, or are damaged, and numbers that are not finite."""

import tarfile

import fault_world
import numpy as np
import pytest
import toy

from geobind.data.loader import BatchLoader, ModalityInput
from geobind.data.options import DataOptions
from geobind.data.sampler import MixedDataset, WeightedSource
from geobind.data.sources import TableRows
from geobind.data.table import open_table
from geobind.errors import DataError, TrainingError
from geobind.modality import Modality
from geobind.training.checkpoint import Checkpoint

pytestmark = pytest.mark.slow

ROWS = 40


class Noted(Modality):
    """Ten numbers in a file, or in its bytes."""

    name = "noted"
    role = "trainable"

    def encoder(self, width, *, pretrained=True):
        return toy.Net(width, 0.0, True)

    def prepare(self, raw, *, training=False):
        from geobind.data.readers.files import open_binary

        with open_binary(raw) as file:
            return toy.torch.tensor([float(word) for word in file.read().split()])


@pytest.fixture
def notes(tmp_path, monkeypatch):
    """A table of files in a folder of its own, as rows of a stage."""
    monkeypatch.setenv("GEOBIND_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "disk" / "notes"
    folder.mkdir(parents=True)
    lines = ["key,noted"]
    for i in range(ROWS):
        (folder / f"{i}.txt").write_text(" ".join(map(str, toy.view(i, "left"))))
        lines.append(f"row{i},notes/{i}.txt")
    (tmp_path / "notes.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def rows_of(folder, **options):
    table = open_table(DataOptions(manifest="notes.csv", root="disk", **options), folder, ("noted",))
    return MixedDataset((WeightedSource("notes.csv", TableRows(table, ("noted",))),))


def batches(rows, max_broken=0.01, workers=0, steps=20):
    sampler = rows.sampler(4, seed=0)
    return BatchLoader(
        rows, {"noted": ModalityInput(Noted())}, sampler, 0, steps, workers=workers, max_broken=max_broken
    )


def unmount(folder):
    """An empty mount point is left; all at once, as rmtree is not."""
    (folder / "disk" / "notes").rename(folder / "elsewhere")


def lose(folder):
    (folder / "disk").rename(folder / "elsewhere")


@pytest.mark.parametrize(
    ("go", "where"),
    [(unmount, "disk: it is empty"), (lose, "disk: No such file or directory")],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_data_that_are_gone_are_said_to_be_at_once(notes, go, where, workers):
    loader = batches(rows_of(notes), max_broken=0.5, workers=workers)
    found = iter(loader)
    next(found)
    go(notes)
    with pytest.raises(
        DataError, match=rf"notes\.csv: the files of 'noted' are gone: .*{where}\); mount"
    ) as caught:
        list(found)
    assert "go on with --resume" in str(caught.value)


def test_a_file_that_is_missing_among_others_is_a_broken_row(notes):
    (notes / "disk" / "notes" / "7.txt").unlink()
    loader = batches(rows_of(notes), max_broken=0.5)
    assert len(list(loader)) == 20
    assert [key for key, _ in loader.quarantined] == ["row7"]


def test_files_that_are_all_damaged_are_not_said_to_be_gone(notes):
    for path in (notes / "disk" / "notes").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"drawn instead cannot be used[^$]*is empty \(0 bytes\)"):
        list(batches(rows_of(notes), max_broken=0.5))


def test_a_share_that_gives_errors_when_it_is_read_ends_the_stage_at_once(notes, monkeypatch):
    from geobind.data.readers import files

    def stale(path):
        raise DataError(f"{path}: Stale file handle")

    monkeypatch.setattr(files, "open_binary", stale)
    with pytest.raises(DataError, match=r"drawn instead cannot be used[^$]*Stale file handle"):
        list(batches(rows_of(notes), max_broken=0.5))


def test_a_tar_file_that_is_cut_while_it_is_read_breaks_rows_and_one_that_is_gone_all(notes):
    folder = notes / "disk" / "notes"
    with tarfile.open(notes / "disk" / "a.tar", "w") as tar:
        for i in range(ROWS):
            tar.add(folder / f"{i}.txt", f"{i}.txt")
    lines = ["key,noted", *(f"row{i},a.tar::{i}.txt" for i in range(ROWS))]
    (notes / "notes.csv").write_text("\n".join(lines) + "\n")
    loader = batches(rows_of(notes), max_broken=1.0)
    found = iter(loader)
    next(found)
    tar = notes / "disk" / "a.tar"
    content = tar.read_bytes()
    tar.write_bytes(content[: len(content) // 2])
    for _ in range(8):
        next(found)
    assert 5 < len(loader.quarantined) <= ROWS // 2 + 1
    assert "no such member" in loader.quarantined[0][1] or "cut short" in loader.quarantined[0][1]
    tar.unlink()
    with pytest.raises(DataError, match=r"are gone: .*a\.tar and 8 of 8 others"):
        list(found)


def test_data_that_go_while_the_cache_fills_are_said_to_be_gone(notes):
    from geobind.embedding_cache.build import CacheBuilder, MissingRow
    from geobind.embedding_cache.loader import RawColumn

    rows = rows_of(notes)
    lose(notes)
    cells = RawColumn(rows, "noted")
    entry = type("Entry", (), {})
    filling = CacheBuilder(entry, Noted(), cells, False, 0, lambda batch: batch, lambda: None, 8, 0)
    with pytest.raises(DataError, match="are gone"):
        filling.fill([MissingRow(row, 0, 0, (row, row)) for row in range(ROWS)])


def test_after_a_loss_that_is_not_finite_mended_data_go_on_from_the_checkpoint_and_another_rate_starts_anew(
    home, whole, monkeypatch
):
    forward = toy.Net.forward
    table = home / "wheel.jsonl"
    good = table.read_text()
    lines = good.splitlines()
    number = next(i for i in range(30, 60) if '"spoke"' in lines[i] and '"train"' in lines[i])
    values = lines[number].split('"spoke": [')[1].split("]")[0]
    lines[number] = lines[number].replace(values.split(",")[0], "3e38", 1)
    table.write_text("\n".join(lines) + "\n")
    with (
        monkeypatch.context() as patch,
        pytest.raises(TrainingError, match=r"the loss is nan at step \d") as caught,
    ):
        # Finite, but not what an encoder makes of it that squares what it is given.
        patch.setattr(toy.Net, "forward", lambda net, x: forward(net, x + 0 * x.square()))
        fault_world.train(home)
    assert f"wheel{number}" in str(caught.value)
    table.write_text(good)
    fault_world.train(home, resume=True)
    assert fault_world.outcome(home / "run") == whole()
    fault_world.train(home, "stages.0.optimizer.lr=0.001", resume=True)
    assert fault_world.outcome(home / "run") == whole("stages.0.optimizer.lr=0.001")


def test_weights_that_are_not_finite_are_not_saved_as_a_good_checkpoint(home, monkeypatch):
    saved = []
    save = Checkpoint.save

    def watched(self, number, told):
        if number == 3:
            next(self.modules["encoder.spoke"].parameters()).data.fill_(np.nan)
        path = save(self, number, told)
        saved.append(number)
        return path

    monkeypatch.setattr(Checkpoint, "save", watched)
    with pytest.raises(
        TrainingError, match=r"stage 'one': weights are not finite after step 2: encoder"
    ) as caught:
        fault_world.train(home)
    assert saved == [1, 2]
    assert "last good checkpoint" in str(caught.value)
