"""One real run on files of toy Earth, with texts that try to break out of a page, and one broken sound."""

import pytest
import small_world


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _patched(cache):
    with small_world.patched(cache):
        yield


@pytest.fixture(scope="session")
def home(cache, tmp_path_factory):
    """A folder with the world in it, which recipes start from."""
    folder = tmp_path_factory.mktemp("home")
    with small_world.patched(cache):
        small_world.write_world(folder / "world")
    return folder


@pytest.fixture(scope="session")
def finished(cache, home):
    with small_world.patched(cache):
        return small_world.run(home, "first")


@pytest.fixture(scope="session")
def second(cache, home):
    with small_world.patched(cache):
        return small_world.run(home, "second", "seed=1", "stages.sound_to_tile.optimizer.lr=0.002")


@pytest.fixture(scope="session")
def opened(cache, finished, home):
    from geobind.report import open_held_out

    with small_world.patched(cache):
        return open_held_out(finished, home)


@pytest.fixture(scope="session")
def path(cache, finished, opened):
    from geobind.report import write_report

    with small_world.patched(cache):
        return write_report(finished, binder=opened[0], held_out=opened[1])


@pytest.fixture(scope="session")
def page(path):
    return path.read_text(encoding="utf-8")
