#!/bin/bash
# Runs inside the new environment, from the folder that Snakemake was started in: the repository.
set -euo pipefail
python -m pip install --no-deps --no-build-isolation --editable .
