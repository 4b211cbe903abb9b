#!/bin/bash
# Runs inside the new environment. The workflow says where the repository is, wherever Snakemake was started.
set -euo pipefail
python -m pip install --no-deps --require-hashes --requirement "$SABR_SOURCE/requirements-nodeps.lock"
python -m pip install --no-deps --no-build-isolation --editable "$SABR_SOURCE"
