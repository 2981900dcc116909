import pytest

from geobind.errors import DataError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("GEOBIND_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def refused():
    """Assert that a call raises DataError whose message holds every given word."""

    def check(call, *words):
        with pytest.raises(DataError) as caught:
            call()
        for word in words:
            assert word in str(caught.value), f"{word!r} is not in: {caught.value}"
        return str(caught.value)

    return check
