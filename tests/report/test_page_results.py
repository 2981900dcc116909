"""Sections of a report beside retrieval: calibration, modality gap, arithmetic, probes, provenance."""

import json
import re

import numpy as np
import pytest
import torch
from small_world import EVIL, copied

from geobind.binder import Binder
from geobind.errors import CheckpointError
from geobind.evaluation import ProbeResults
from geobind.evaluation.arithmetic import evaluate_sum_of_rows
from geobind.evaluation.calibration import calibrate, measure_calibration
from geobind.evaluation.embedded import EmbeddedRows, embed_rows
from geobind.recipe.embedding_sum import parse_sum
from geobind.report import write_report
from geobind.report.run_files import load_checked, read_run

pytestmark = pytest.mark.slow


def world(seed, rows=60):
    random = np.random.default_rng(seed)
    hidden = random.normal(size=(rows, 16))
    made = {
        name: torch.tensor(hidden + random.normal(size=hidden.shape)) for name in ("tile", "photo", "words")
    }
    return {
        n: EmbeddedRows(np.arange(rows), torch.nn.functional.normalize(x, dim=1)) for n, x in made.items()
    }


def metric(value, low, high, chance=0.5):
    return {"value": value, "chance": chance, "low": low, "high": high, "p": None}


POINT = {
    "shots": 4,
    "fewest": 4,
    "rows": 8,
    "draws": 10,
    "metrics": {"accuracy": metric(0.777, 0.6, 0.9)},
    "deviation": 0.1,
    "penalty": 0.1,
}
PROBES = {
    "modality": "tile",
    "data": f"rows {EVIL}",
    "split": "test",
    "kind": "classes",
    "settings": {"draws": 10},
    "classes": ["a", "b"],
    "queries": 24,
    "chance": 0.5,
    "majority": 0.5,
    "zero_shot": {
        "words": {
            "classes": ["a", "b"],
            "queries": 24,
            "majority": 0.5,
            "metrics": {"accuracy": metric(0.625, 0.4, 0.8)},
            "per_class": {"a": metric(0.75, 0.5, 1.0), "b": metric(0.5, 0.25, 0.75)},
            "confusion": [[9.0, 3.0], [6.0, 6.0]],
        }
    },
    "curves": {
        "tile": [
            {
                "classifier": "logistic",
                "points": [POINT],
            }
        ]
    },
}
FOREST = {"name": "forest", "rows": 24, "blocks": 6, "r2": metric(0.432, 0.3, 0.5, -0.1)}
FACTS = {
    "modality": "tile",
    "data": "rows",
    "split": "test",
    "kind": "facts",
    "settings": {"folds": 5},
    "facts": {"tile": [{**FOREST, "nearest_place": None, "error": 0.1}]},
}


@pytest.fixture(scope="module")
def full(finished, tmp_path_factory):
    """A run with everything that can be measured, and its page."""
    run = copied(finished, tmp_path_factory.mktemp("full"))
    found = world(1)
    calibrated = measure_calibration(
        calibrate(world(0), "split 'val' of rows"), found, "split 'test' of rows"
    )
    sums = evaluate_sum_of_rows(found, parse_sum("tile+photo:words", found))
    for name, part in (
        ("calibration", calibrated.to_dict()),
        ("arithmetic", {"sums": [sums.to_dict()]}),
        ("probes", PROBES),
    ):
        (run / f"{name}.json").write_text(json.dumps(part))
    return run, write_report(run).read_text(), calibrated, sums


def test_every_section_is_there_and_linked(full):
    _, page, _, _ = full
    for name in ("gap", "arithmetic", "calibration", "probes", "leakage", "ran", "retrieval"):
        assert f'id="{name}"' in page
        assert f'href="#{name}"' in page


def test_calibration_is_drawn_and_its_figures_are_those_measured(full):
    run, page, calibrated, _ = full
    for one in calibrated.choices:
        assert f"reliability of {one.query} → {one.gallery}:" in page
        error = one.fitted.equal_width
        assert f"{error.value:.3f}<small>{error.low:.3f} to {error.high:.3f}</small>" in page
        assert f"perfect {error.perfect:.3f}" in page
    assert page.count("a match?:") == 3
    assert (run / "figures" / "calibration.png").read_bytes()[:4] == b"\x89PNG"


def test_sums_stand_beside_their_parts(full):
    _, page, _, sums = full
    part = page[page.index('id="arithmetic"') : page.index('id="calibration"')]
    assert "tile + photo → words" in part
    for query in sums.queries:
        assert f'<th scope="row" class="nowrap">{query.name}</th>' in part
        assert f"{query.metrics['R@10'].value:.3f}" in part


def test_probes_are_shown_and_what_they_say_is_escaped(full):
    _, page, _, _ = full
    assert "0.625<small>0.400 to 0.800</small><small>chance 0.500</small>" in page
    assert "0.777" in page
    assert EVIL not in page


def test_numbers_read_off_embeddings_are_shown(finished, tmp_path):
    run = copied(finished, tmp_path)
    (run / "probes.json").write_text(json.dumps(FACTS))
    page = write_report(run).read_text()
    assert "forest" in page
    assert "0.432<small>0.300 to 0.500</small><small>chance -0.100</small></td>" in page


def test_the_gap_of_a_run_is_on_its_page(page, finished):
    pairs = json.loads((finished / "gap.json").read_text())["pairs"]
    assert len(pairs) == 6
    part = page[page.index('id="gap"') :]
    for pair in pairs:
        assert f"{pair['distance']['value']:.3f}<small>{pair['distance']['low']:.3f} to" in part


def test_results_are_read_back_as_they_were_written(full, tmp_path):
    run, _, _, _ = full
    (tmp_path / "facts.json").write_text(json.dumps(FACTS))
    read = read_run(run)
    for name, result in (
        ("retrieval", read.retrieved),
        ("gap", read.gap),
        ("calibration", read.calibration),
        ("probes", read.probes),
    ):
        written = json.loads((run / f"{name}.json").read_text())
        assert json.dumps(result.to_dict()) == json.dumps(written), name
    written = json.loads((run / "arithmetic.json").read_text())
    assert json.dumps({"sums": [one.to_dict() for one in read.sums]}) == json.dumps(written)
    written = json.loads((run / "leakage.json").read_text())
    assert json.dumps({stage: leak.to_dict() for stage, leak in read.leaks.items()}) == json.dumps(written)
    facts = load_checked(ProbeResults, tmp_path / "facts.json")
    assert json.dumps(facts.to_dict()) == json.dumps(FACTS)


def test_a_damaged_file_is_named(finished, tmp_path):
    run = copied(finished, tmp_path)
    (run / "gap.json").write_text('{"pairs": [{"rows": 3}]}')
    with pytest.raises(CheckpointError, match=r"gap\.json: pairs\.0\.modalities"):
        write_report(run)


def test_what_ran_tells_hardware_time_and_memory(page):
    part = page[page.index('id="ran"') :]
    for word in ("<dt>hardware</dt>", "<dt>took</dt>", "<dt>peak memory</dt>", "cores", "licences"):
        assert word in part


def test_a_run_embeds_each_held_out_row_once(home, cache, monkeypatch):
    import small_world

    counted = {}
    embed = Binder.embed

    def counting(self, modality, x, **options):
        found = embed(self, modality, x, **options)
        counted[modality] = counted.get(modality, 0) + (len(found) if len(found) > 1 else 0)
        return found

    monkeypatch.setattr(Binder, "embed", counting)
    run = small_world.run(home, "counted")
    bank = 40  # training rows that the bundle's bank embeds of two modalities
    assert counted == {"tile": 24 + bank, "photo": 24 + bank, "words": 24, "sound": 24}
    assert "<audio" in (run / "report.html").read_text()


def test_ready_embeddings_give_the_page_that_embedding_again_gives(finished, opened, tmp_path):
    binder, held_out = opened
    pair = Binder({name: binder.modalities[name] for name in ("tile", "words")}, 32, seed=0)
    pages = [
        write_report(
            copied(finished, tmp_path / str(number)),
            binder=pair,
            held_out=held_out,
            most_rows=10,
            embedded=ready,
        ).read_text()
        for number, ready in enumerate((None, embed_rows(pair, held_out)))
    ]
    without_rounding = [re.sub(r' (?:d="M|x="|y=")[^"]*"', "", page) for page in pages]
    assert without_rounding[0] == without_rounding[1]


def test_galleries_by_label_take_any_row_of_the_class_for_right(finished, opened, tmp_path):
    run = copied(finished, tmp_path)
    text = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(text.replace("split: test", "split: test\n  by: label"))
    page = write_report(run, binder=opened[0], held_out=opened[1]).read_text()
    assert "any item of the query's class is right" in page
    examples = page[page.index('id="examples"') : page.index('id="places"')]
    assert examples.count("✓ right") > 24
    own = page[page.index('id="places"') :]
    assert own


def test_warnings_stand_by_the_table_and_clusters_are_named(finished, tmp_path):
    run = copied(finished, tmp_path)
    retrieval = json.loads((run / "retrieval.json").read_text())
    retrieval |= {"warnings": ["split 'test' leaks <b>"], "clusters": "group"}
    retrieval["cluster_note"] = "dependent: 7 for 9 rows"
    (run / "retrieval.json").write_text(json.dumps(retrieval))
    page = write_report(run).read_text()
    assert '<p class="notice">split &#39;test&#39; leaks &lt;b&gt;</p>' in page
    assert "dependent: 7 for 9 rows" in page


def test_nearly_equal_images_are_in_the_leakage_table(finished, tmp_path):
    leaks = json.loads((finished / "leakage.json").read_text())
    assert {leak["copies"]["tile"]["near"] for leak in leaks.values() if "tile" in leak["copies"]} == {0}
    run = copied(finished, tmp_path)
    first = next(iter(leaks.values()))["copies"]["tile"]
    first |= {"near": None, "near_unseen": "99 images to decode, more than 9"}
    (run / "leakage.json").write_text(json.dumps(leaks))
    assert "nearly equal ones not looked for: 99 images to decode" in write_report(run).read_text()


def test_the_bundle_of_a_run_says_which_rows_it_used_and_under_which_licences(finished):
    card = json.loads((finished / "bundle" / "binder.json").read_text())
    assert [one["used_for"] for one in card["data"]] == ["training"] * 3 + ["measuring"]
    assert card["data"][0]["licences"] == {f"CC BY 4.0 {EVIL}": 40}
    readme = (finished / "bundle" / "README.md").read_text()
    assert "made of: **CC-BY-4.0**" in readme
    assert EVIL not in readme
