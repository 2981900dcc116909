"""Runs that are killed at random moments, again and again, end as runs that nothing happened to."""

import fault_world
import pytest
from fault_commands import CommandKilling
from fault_kills import Different, Killing
from fault_moments import Moments, Target

pytestmark = pytest.mark.slow

VARIANTS = ["plain", "watched", "several pairs", "accumulated", "rare checkpoints"]


def test_twenty_kills_change_neither_weights_nor_losses_nor_what_is_measured(tmp_path):
    kills = list(Killing(tmp_path, seed=0, variants=VARIANTS).kills(20))
    assert len(kills) == 20
    where = {kill.where.split(",")[0] for kill in kills}
    # Kinds take turns, but what the clock kills falls anywhere and changes which moments are left.
    assert len({"cache", "checkpoint", "between stages", "evaluation", "bundle", "report"} & where) >= 3


def test_a_run_that_ends_otherwise_is_noticed(tmp_path):
    killing = Killing(tmp_path, seed=2, variants=["plain"])
    whole = fault_world.Outcome("other", "other", ()), {"step": 4}, 1.0
    killing.whole["plain"] = whole
    with pytest.raises(Different, match=r"'plain' in .*, killed .*: other weights"):
        list(killing.kills(1))


def test_a_moment_is_the_same_in_every_run(tmp_path):
    ended = []
    for name in ("one", "two"):
        fault_world.prepare(tmp_path / name)
        ended.append(
            fault_world.live(tmp_path / name, moments=Moments(Target("checkpoint", 17)), resume=False)
        )
    assert all(one.killed for one in ended)
    steps = [(tmp_path / name / "run" / "metrics.csv").read_text().count("\n") for name in ("one", "two")]
    assert steps[0] == steps[1] > 1


def test_other_commands_that_are_killed_come_to_the_same_when_they_are_done_again(tmp_path):
    names = ["save", "pack", "import", "split", "embed"]
    kills = list(CommandKilling(tmp_path, seed=1, names=names).kills(30))
    assert {kill.variant for kill in kills} == set(names)
