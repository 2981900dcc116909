"""How much memory there is, told by files as Linux writes them; how much was held."""

import pytest

from geobind.errors import DataError
from geobind.utils import system as memory


def system(root, cgroup="", **files):
    texts = {
        "proc/meminfo": "MemTotal: 9000 kB\nMemAvailable: 4000 kB\n",
        "proc/self/status": "VmHWM: 700 kB\nVmRSS: 100 kB\n",
        "proc/self/cgroup": cgroup,
    }
    for name, text in {**texts, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return memory.available_memory(root)


def test_what_is_available_and_what_is_held_already_may_be_taken(tmp_path):
    assert system(tmp_path).bytes == 1024 * 4100


@pytest.mark.parametrize(
    ("cgroup", "folder", "names"),
    [
        ("0::/box/inner\n", "sys/fs/cgroup/box", ("memory.max", "memory.current", "inactive_file")),
        (
            "7:cpu:/\n4:memory:/box\n",
            "sys/fs/cgroup/memory/box",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ),
    ],
)
def test_the_limit_of_a_container_counts_and_cached_files_do_not(tmp_path, cgroup, folder, names):
    limit, used, cached = names
    files = {f"{folder}/{limit}": "2000000\n", f"{folder}/{used}": "900000\n"}
    found = system(tmp_path, cgroup, **files, **{f"{folder}/memory.stat": f"anon 1\n{cached} 300000\n"})
    assert found.bytes == 2000000 - 600000 + 1024 * 100
    assert "container" in found.says
    assert system(tmp_path, cgroup, **{f"{folder}/{limit}": "max\n"}).bytes == 1024 * 4100
    assert system(tmp_path, cgroup, **{f"{folder}/{limit}": "9223372036854771712\n"}).bytes == 1024 * 4100


def test_where_nothing_tells_nothing_is_said(tmp_path):
    assert memory.available_memory(tmp_path) is None


@pytest.mark.parametrize(
    ("text", "size"), [("8GiB", 2**33), ("500 MB", 5 * 10**8), ("1.5k", 1500), ("2e9", 2 * 10**9), ("7", 7)]
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert memory.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1GB", "0", "3 parsecs", "1e999", "1.2.3"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(DataError, match="write it as 8GiB"):
        memory.parse_size(text)


def test_the_peak_is_forgotten_but_not_the_highest():
    block = bytearray(80_000_000)
    assert memory.peak_bytes() > 80_000_000
    del block
    highest = memory.peak_process_bytes()
    if memory.reset_peak():
        assert memory.peak_bytes() < highest
    assert memory.peak_process_bytes() >= highest
