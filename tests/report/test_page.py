"""The page of a run: content, self-containedness, and escaping of user text."""

import html.parser
import json
import re
import shutil

import pytest
from small_world import EVIL, copied

from geobind.binder import Binder
from geobind.errors import CheckpointError, DataError
from geobind.report import open_held_out, write_report

pytestmark = pytest.mark.slow

VOID = {"meta", "link", "img", "br"}


class Page(html.parser.HTMLParser):
    """The elements of a page, and whether every one of them is closed where it should be."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, self.getpos()

    def all(self, tag):
        return [attrs for found, attrs in self.elements if found == tag]


@pytest.fixture(scope="session")
def parsed(page):
    return Page(page)


def test_every_element_is_closed_where_it_should_be(parsed):
    assert parsed.open == []


def test_the_page_asks_for_nothing_outside_itself(page, parsed):
    addresses = [attrs[name] for _, attrs in parsed.elements for name in ("src", "href") if name in attrs]
    assert len(addresses) > 50
    links = {address for address in addresses if not address.startswith("#")}
    assert {link[:5] for link in links - {"bundle/README.md"}} == {"data:"}
    assert not re.search(r"https?://|@import|url\((?!#)", page)


def test_the_page_forbids_scripts_and_requests(parsed):
    policy = next(meta["content"] for meta in parsed.all("meta") if "http-equiv" in meta)
    assert policy == "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
    assert not parsed.all("script")


def test_what_users_wrote_is_shown_and_not_obeyed(page):
    assert EVIL not in page
    assert "<b>more</b>" not in page
    escaped = EVIL.replace("<", "&lt;").replace(">", "&gt;").replace("'", "&#39;")
    for where in (f"{escaped}4", f"CC BY 4.0 {escaped}", f"<blockquote>{escaped}"):  # key, licence, caption
        assert where in page
    assert re.search(rf"<br>\w+ {re.escape(escaped)}", page)  # label


def test_every_id_is_there_once_and_every_link_leads_to_one(parsed):
    ids = [attrs["id"] for _, attrs in parsed.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = {attrs["href"][1:] for attrs in parsed.all("a") if attrs["href"].startswith("#")}
    assert links - {"leakage"} == {"retrieval", "examples", "places", "space", "gap", "training", "ran"}
    assert links <= set(ids)
    used = {attrs["href"][1:] for attrs in parsed.all("use")}
    assert used
    assert used <= set(ids)


def test_pictures_players_and_drawings_say_what_they_are(parsed):
    assert len(parsed.all("img")) > 60
    assert all(image["alt"] for image in parsed.all("img"))
    assert len(parsed.all("audio")) > 20
    assert all(player["aria-label"] and "controls" in player for player in parsed.all("audio"))
    assert all(drawing["role"] == "img" and drawing["aria-label"] for drawing in parsed.all("svg"))
    assert all(cell.get("scope") in ("col", "row") for cell in parsed.all("th"))


def test_the_figures_of_the_matrix_are_those_measured(page, finished):
    rows = json.loads((finished / "retrieval.json").read_text())["rows"]
    assert len(rows) == 12
    for row in rows:
        recall = row["metrics"]["R@1"]
        assert f"<b>{recall['value']:.3f}</b><small>{row['mark']}</small>" in page
    assert f"Chance gives {rows[0]['metrics']['R@1']['chance']:.3f}." in page
    matrix = page[page.index('class="matrix') :]
    matrix = matrix[: matrix.index("</table>")]
    assert matrix.count("<small>trained</small>") == matrix.count("<small>emergent</small>") == 6


def test_chance_stands_in_each_cell_where_galleries_differ_in_size(finished, tmp_path):
    folder = copied(finished, tmp_path)
    table = json.loads((folder / "retrieval.json").read_text())
    table["rows"][0]["metrics"]["R@1"]["chance"] = 0.25
    (folder / "retrieval.json").write_text(json.dumps(table))
    text = write_report(folder).read_text()
    assert "</b><small>chance 0.250</small><small>" in text
    assert "Chance gives" not in text


def test_what_was_bound_last_is_shown_first_and_its_examples_are_open(page):
    head = page[: page.index("</header>")]
    assert re.search(r'class="label">sound → tile', head)
    assert head.count('<li class="item query">') == 2
    assert "<audio" not in head
    assert head.index('class="matrix') < head.index('class="label"')
    opened = re.findall(r'<details class="gallery"( open)?>\s*<summary>(.*?) <span>', page)
    assert opened[0] == (" open", "sound → tile")
    assert not any(mark for mark, _ in opened[1:])


def test_the_page_says_how_its_bundle_is_used(page, finished, tmp_path, monkeypatch):
    folder = f"{finished.name}/bundle"
    assert f'binder = Binder.load("{folder}")' in page
    assert 'queries = binder.embed("sound", queries)' in page
    assert 'href="bundle/README.md"' in page
    assert (finished / "bundle" / "README.md").is_file()
    assert str(finished.parent) not in page[page.index('id="use"') :][:2000]
    monkeypatch.chdir(copied(finished, tmp_path).parent)
    from pathlib import Path

    near = next(path for path in Path().iterdir() if (path / "run.json").is_file())
    assert f'Binder.load("{near}/bundle")' in write_report(near).read_text()


def test_the_snippet_of_the_page_runs(page, finished, opened, monkeypatch):
    import html

    binder, held_out = opened
    code = html.unescape(re.search(r"<pre[^>]*>(from geobind.*?)</pre>", page, re.DOTALL)[1])
    monkeypatch.setattr(Binder, "load", lambda folder: binder)
    values = {"queries": held_out.samples("sound")[:4], "gallery": held_out.samples("tile")[:4]}
    exec(code, values)
    assert values["nearest"].shape == (4, 3)


def test_broken_samples_are_listed_with_their_reasons(page):
    assert "not a sound that can be decoded" in page


def test_png_figures_lie_beside_the_page(finished, page):
    found = {path.name for path in (finished / "figures").glob("*.png")}
    assert found == {"places.png", "retrieval.png", "space.png", "training.png"}
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in (finished / "figures").iterdir())


def test_the_page_is_a_few_megabytes_at_most(page):
    assert len(page) < 3_000_000


def test_many_rows_are_sampled_and_the_page_says_so(finished, opened, tmp_path):
    binder, held_out = opened
    pair = Binder({name: binder.modalities[name] for name in ("tile", "words")}, 32, seed=0)
    text = write_report(copied(finished, tmp_path), binder=pair, held_out=held_out, most_rows=10).read_text()
    assert "Drawn from 10 of the 24 held-out rows, and ranked among those." in text
    assert "emergent, 10 items" in text


def test_without_the_binder_there_is_a_report_without_galleries(finished, tmp_path):
    text = write_report(copied(finished, tmp_path), why_not="No <data> here.").read_text()
    assert "Retrieval on held-out rows" in text
    assert "No &lt;data&gt; here." in text
    assert "<audio" not in text


def test_a_run_that_is_not_finished_has_a_report(finished, tmp_path):
    folder = copied(finished, tmp_path, "bundle", "03_sound_to_tile", "retrieval.json")
    (folder / "metrics.csv").write_text("stage,step,loss,lr\nsound_to_tile,0,2.5,0.1\nsound_to_tile,1,0.")
    text = write_report(folder).read_text()
    assert "Not finished: sound_to_tile." in text
    assert "loss of stage sound_to_tile over its steps" in text
    assert 'id="retrieval"' not in text


def test_a_run_that_has_only_begun_has_a_report(finished, tmp_path):
    for name in ("run.json", "recipe.yaml"):
        shutil.copy(finished / name, tmp_path / name)
    text = write_report(tmp_path).read_text()
    assert "Not finished: photo_to_tile, words_to_photo and sound_to_tile." in text


def test_leakage_is_shown_where_it_was_looked_for(finished, tmp_path):
    folder = copied(finished, tmp_path, "leakage.json")
    assert 'id="leakage"' not in write_report(folder).read_text()
    rows = {"test_rows": 24, "train_rows": 40}
    near = {**rows, "least_km": 0.5, "median_km": 80.0, "within_km": {"1": 0.25, "10": 0.5}}
    near |= {"shared_cells": 3, "in_shared_cells": 0.125}
    copies = {"tile": {"compared": 24, "rows": 2, "words": False, "example": EVIL}}
    leak = {"train": "rows", "test": "rows", **rows, "near": near, "copies": copies, "groups": None}
    leak["faults"] = [f"6 {EVIL}"]
    found = {"photo_to_tile": leak, "sound_to_tile": {**leak, "near": None, "faults": []}}
    (folder / "leakage.json").write_text(json.dumps(found))
    text = write_report(folder).read_text()
    assert '<a href="#leakage">' in text
    for words in ("6 &lt;script&gt;", "tile 2 of 24", "within 10 km", "12.5\N{NO-BREAK SPACE}%", "0.500 km"):
        assert words in text
    assert EVIL not in text
    assert text.count('class="notice"') == 1
    (folder / "leakage.json").write_text(json.dumps({"sound_to_tile": {**leak, "near": None, "faults": []}}))
    assert "Nothing to warn of was found." in write_report(folder).read_text()


def test_time_memory_device_and_hardware_are_shown_where_they_were_recorded(finished, tmp_path):
    folder = copied(finished, tmp_path)
    stage = folder / "stages" / "01_photo_to_tile" / "stage.json"
    more = {"peak_memory_bytes": 3_210_000_000, "device": "NVIDIA Abacus", "seconds": 3723.0}
    stage.write_text(json.dumps({**json.loads(stage.read_text()), **more}))
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**facts, "hardware": {"cores": 2}}))
    text = write_report(folder).read_text().replace("\N{NO-BREAK SPACE}", " ")
    for words in ("3.2 GB", "NVIDIA Abacus", "1 h 02 min", "cores 2"):
        assert words in text


def test_a_folder_without_a_run_is_told(tmp_path):
    with pytest.raises(DataError, match=r"not a run, it has no run\.json and recipe\.yaml"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("stages/01_photo_to_tile/stage.json", '{"name": 3}', r"stage\.json: name: .* --resume"),
        ("retrieval.json", '{"rows": [{}]}', r"retrieval\.json: rows\.0\.query"),
        ("run.json", "[]", r"run\.json: not a JSON object"),
        ("recipe.yaml", "stages: 3", r"recipe\.yaml: modalities: Field required"),
    ],
)
def test_a_damaged_file_is_named(finished, tmp_path, file, text, message):
    folder = copied(finished, tmp_path)
    (folder / file).write_text(text)
    with pytest.raises(CheckpointError, match=message):
        write_report(folder)


def test_data_that_have_moved_cost_the_galleries_and_not_the_report(finished, home, tmp_path):
    binder, held_out = open_held_out(finished, home)
    moved = home / "world" / "tile"
    moved.rename(home / "elsewhere")
    try:
        text = write_report(copied(finished, tmp_path), binder=binder, held_out=held_out).read_text()
    finally:
        (home / "elsewhere").rename(moved)
    assert "Galleries, maps and the shared space need the held-out rows" in text
    assert "Retrieval on held-out rows" in text
