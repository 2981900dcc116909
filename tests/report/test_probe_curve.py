import numpy as np
import torch
from torch.nn.functional import normalize

from geobind.evaluation import (
    FewShotOptions,
    LabelledEmbeddings,
    ProbeResults,
    Resampling,
    build_probe_tables,
    build_prototypes_from_labels,
    few_shot,
    zero_shot,
)
from geobind.evaluation.tables import find_confused_classes
from geobind.report.plots import axis_positions, draw_png, draw_svg, probe_panel


def probes(shots=(1, 4, "all"), zero=True):
    rows = LabelledEmbeddings(
        normalize(torch.randn(60, 8, generator=torch.Generator().manual_seed(0)), dim=1), ["a", "b", "c"] * 20
    )
    few = Resampling(resamples=50)
    found = zero_shot(rows.embeddings, rows.labels, build_prototypes_from_labels(*rows[:2]), options=few)
    curves = few_shot(rows, rows, options=FewShotOptions(shots, 2, resampling=few))
    return ProbeResults(
        "tile",
        "rows.csv",
        "test",
        "classes",
        ("a", "b", "c"),
        60,
        1 / 3,
        {"sound": found} if zero else {},
        {"tile": curves},
    )


def test_shots_lie_one_step_apart_with_zero_first_and_all_last():
    assert axis_positions(probes()) == {0: 0, 1: 1, 4: 2, "all": 3}
    assert axis_positions(probes((2, 8), zero=False)) == {2: 0, 8: 1}


def test_the_curve_is_drawn_for_a_page_and_as_a_file():
    panel = probe_panel(probes())
    assert draw_png([panel], 1)[:4] == b"\x89PNG"
    page = draw_svg(panel)
    assert "zero-shot, sound" in page and "examples of each class" in page
    assert "logistic" in panel.alt and "at all" in panel.alt


def test_the_classes_mistaken_most_often_come_first():
    found = probes().zero_shot["sound"]
    listed = list(find_confused_classes(found))
    assert [times for *_, times in listed] == sorted((times for *_, times in listed), reverse=True)
    total = sum(times for *_, times in find_confused_classes(found, 9))
    assert total <= np.sum(found.confusion_CC) - np.trace(found.confusion_CC) + 1e-9


def test_tables_show_what_there_is():
    titles = [table.title for table in build_probe_tables(probes())]
    assert titles == ["Zero-shot recognition of tile", "Few-shot recognition of tile"]
    assert [table.title for table in build_probe_tables(probes(zero=False))] == [
        "Few-shot recognition of tile"
    ]
