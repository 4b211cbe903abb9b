import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


class Workflow:
    """Snakemake on the `tiny` scale, in a folder of its own, with the repository's Snakefile and real MNIST."""

    def __init__(self, folder, data):
        self.folder = folder
        self.results = folder / "results" / "tiny"
        self.data = data
        folder.mkdir(parents=True)

    def command(self, *arguments, **changes):
        overlay = {"scale": "tiny", "data": {"folder": str(self.data), "mirror": None}} | changes
        path = self.folder / "overlay.yaml"
        path.write_text(yaml.safe_dump(overlay))
        return [
            *(sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", self.folder),
            *("--configfile", path, *arguments),
        ]

    def environment(self):
        return os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

    def run(self, *arguments, **changes):
        return subprocess.run(
            [str(part) for part in self.command(*arguments, **changes)],
            capture_output=True,
            text=True,
            env=self.environment(),
            cwd=self.folder,
        )

    def planned(self, *arguments, **changes):
        """The output files of every job in a dry run, by rule."""
        done = self.run("--dry-run", *arguments, **changes)
        assert done.returncode == 0, done.stderr
        jobs, rule = {}, None
        for line in done.stdout.splitlines() + done.stderr.splitlines():
            if line.startswith(("rule ", "localrule ")):
                rule = line.split()[1].rstrip(":")
                jobs.setdefault(rule, [])
            elif line.startswith("    output: ") and rule:
                jobs[rule].append(line.removeprefix("    output: ").split(", ")[0])
        return jobs


@pytest.fixture(scope="module")
def make_workflow(tmp_path_factory, mnist_folder):
    def make(name):
        return Workflow(tmp_path_factory.mktemp("workflow") / name, mnist_folder)

    return make
