"""Tables in a terminal that is narrower than they are."""

from rich.table import Table

from geobind.cli.options import print_table


def test_a_table_wider_than_the_terminal_keeps_its_figures(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    table = Table(box=None)
    for name in ("query to gallery", "R@1", "R@10"):
        table.add_column(name, no_wrap=True)
    table.add_row("satellite_multispectral to ground_image", "0.123 (.002)", "0.456 (.020)")
    print_table(table)
    assert "ground_image  0.123 (.002)  0.456 (.020)" in capsys.readouterr().out
