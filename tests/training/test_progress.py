import os
import pty
import re
import subprocess
import sys

SHOW = """
from sabr.training.progress import progress
from sabr.training.metrics import EpochMetrics
from sabr.training.trainer import Progress
metrics = EpochMetrics(1, 0.05, 1e-3, 0.7, 0.6, 0.05, 0.05, 0.9, 0.8, 2.0, 640.0)
with progress("sabr on mnist", 2) as report:
    for step in range(1, 11):
        report(Progress(step, 20, 1, 0.05, metrics if step == 10 else None))
"""


def test_a_line_an_epoch_where_there_is_no_terminal():
    done = subprocess.run([sys.executable, "-c", SHOW], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == [
        "sabr on mnist: epoch 1/2 eps 0.0500 loss 0.7000 (robust 0.6000) natural 90.0% robust 80.0% 640 images/s 2 s left"
    ]


def test_a_bar_on_a_terminal_of_80_columns():
    leader, follower = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    process = subprocess.Popen([sys.executable, "-c", SHOW], stderr=follower, env=environment)
    os.close(follower)
    shown = b""
    while True:
        try:
            part = os.read(leader, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(leader)
    assert process.wait() == 0
    text = " ".join(re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode()).split())
    for word in ("sabr on mnist", "10/20 steps", "epoch 1/2", "eps 0.0500", "0.6000", "90.0%", "80.0%", "640 images/s"):
        assert word in text, word
