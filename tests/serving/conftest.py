"""One small world and one server for all tests of the page."""

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("rasterio")

import served


@pytest.fixture(scope="session")
def binder():
    return served.make_binder()


@pytest.fixture(scope="session")
def world(tmp_path_factory, binder):
    return served.write_world(tmp_path_factory.mktemp("served"), binder)


@pytest.fixture(scope="session")
def explorer(world, binder):
    return served.make_explorer(world, binder)


@pytest.fixture(scope="session")
def server(explorer):
    with served.Served(explorer) as running:
        yield running
