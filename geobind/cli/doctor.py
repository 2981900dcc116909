"""`geobind doctor`."""

from __future__ import annotations

import logging
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING

import click

import geobind
from geobind.cli.options import json_option, print_json

if TYPE_CHECKING:
    from geobind.doctor.examination import DoctorFinding

_log = logging.getLogger(__name__)

_WIDTH = 80  # columns of a terminal
_NAME = 17  # columns of a part's name
_COLOURS = {"ok": "green", "note": "yellow", "fault": "red"}  # click leaves them out where no terminal reads


@click.command("doctor")
@json_option
def doctor_command(as_json: bool) -> None:
    """Check this installation, and name the command that repairs each fault.

    Exits with 0 if everything geobind needs works, whatever the notes say, and with 1 otherwise.
    """
    from geobind.doctor.examination import examine

    if not as_json and sys.stderr.isatty():
        _log.info("loading each part, which takes some seconds")
    findings = examine()
    faults = sum(finding.state == "fault" for finding in findings)
    notes = sum(finding.state == "note" for finding in findings)
    if as_json:
        values = {"ok": not faults, "faults": faults, "notes": notes, "geobind": geobind.__version__}
        print_json({**values, "findings": [asdict(finding) for finding in findings]})
    else:
        for line in _lines(findings):
            click.echo(line)
        verdict = "geobind does not work here" if faults else "geobind works here"
        click.echo(f"\n{_counted(faults, 'fault')}, {_counted(notes, 'note')}: {verdict}")
    sys.exit(1 if faults else 0)


def _lines(findings: Sequence[DoctorFinding]) -> Iterator[str]:
    """Yield the findings, section by section, in lines that fit a terminal."""
    for number, (section, group) in enumerate(groupby(findings, key=lambda finding: finding.section)):
        yield f"{section}" if number == 0 else f"\n{section}"
        for finding in group:
            yield from _told(finding)


def _told(finding: DoctorFinding) -> Iterator[str]:
    state = finding.state if finding.state in _COLOURS else "-"
    start = f"  {state:5}  {finding.part:{_NAME}}  "
    wrapped = textwrap.wrap(
        finding.told,
        _WIDTH,
        initial_indent=start,
        subsequent_indent=" " * (_NAME + 11),
        break_long_words=False,
        break_on_hyphens=False,
    ) or [start.rstrip()]
    mark = click.style(f"{state:5}", fg=_COLOURS.get(finding.state), bold=finding.state == "fault")
    yield wrapped[0].replace(f"{state:5}", mark, 1)
    yield from wrapped[1:]
    if finding.fix:  # in one line, to be copied
        yield f"{' ' * 9}-> {finding.fix}"


def _counted(count: int, word: str) -> str:
    return f"{count or 'no'} {word}{'' if count == 1 else 's'}"
