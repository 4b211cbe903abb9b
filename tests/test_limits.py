"""Limits on the command line that no number can be compared with."""

import pytest
from typer.testing import CliRunner

from sabr.cli import app


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (("keep", "run", "kept"), "--megabytes"),
        (("train", "run.json", "--output", "model.pt", "--history", "history.csv"), "--save-minutes"),
    ],
)
def test_nan_is_wrong_usage(command, option, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, [*command, option, "nan"])
    assert done.exit_code == 2
    assert option in done.output and "Traceback" not in done.output
    assert not list(tmp_path.iterdir())
