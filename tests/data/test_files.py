"""Where files may lie."""

from pathlib import Path

from geobind.data.readers.files import FileResolver


def test_a_relative_root_is_that_of_the_folder_one_works_in(tmp_path, monkeypatch):
    for name in ("sounds", "photos"):  # a notebook that changes its folder
        (tmp_path / name / name).mkdir(parents=True)
        monkeypatch.chdir(tmp_path / name)
        assert FileResolver(Path())(f"{name}/a.wav") == Path(f"{name}/a.wav")
