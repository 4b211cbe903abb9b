"""What a training job refuses before it begins."""

import pytest
import torch

from sabr.errors import SabrError
from sabr.training import job


@pytest.mark.parametrize("name", ["model.pt", "model.json", "model.resume.pt"])
def test_a_history_does_not_take_the_place_of_the_network_or_its_companions(plan, tmp_path, name):
    model, history = tmp_path / "model.pt", tmp_path / "elsewhere" / ".." / name
    with pytest.raises(SabrError, match=r"model\.pt and its companions would overwrite .*give it another name"):
        job.run(
            plan.main[0].training,
            model,
            history,
            tmp_path,
            threads=1,
            device=torch.device("cpu"),
            save_seconds=60.0,
        )
    assert not list(tmp_path.iterdir())


def test_on_the_command_line_it_is_told_too(plan, sabr_command, tmp_path):
    asked, model = tmp_path / "run.json", tmp_path / "model.pt"
    asked.write_text(plan.main[0].training.model_dump_json())
    done = sabr_command("train", asked, "--output", model, "--history", model)
    assert done.returncode == 1
    assert "model.pt and its companions would overwrite" in done.stderr and "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
