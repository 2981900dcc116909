"""Some hundreds of a stranger's requests; `fuzz_requests.py` sends 10,000."""

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("rasterio")

import fuzz_requests
import served


@pytest.mark.slow
def test_no_request_of_a_stranger_breaks_the_server_or_learns_anything(tmp_path):
    binder = served.make_binder()
    folder = served.write_world(tmp_path, binder)
    with served.Served(served.make_explorer(folder, binder), pause_s=0.3, header_s=1.0) as server:
        statuses, faults = fuzz_requests.fuzz(server, folder, range(300))
        assert server.ask("/api/about")[0] == 200
    assert faults == []
    assert statuses["200"] > 20 and statuses["422"] > 50 and statuses["404"] > 5


def test_a_fault_would_be_seen(tmp_path):
    find = fuzz_requests.find_fault
    assert find(b"HTTP/1.1 500 Internal Server Error\r\n\r\n", tmp_path) == "status 500"
    assert find(b"HTTP/1.1 422 x\r\n\r\n" + str(tmp_path).encode(), tmp_path)
    assert find(b"nonsense", tmp_path) == "no status"
    assert find(b"HTTP/1.1 503 Busy\r\n\r\n{}", tmp_path) is None
