"""The paper's claims, tried on two cores; report.py writes docs/claims.md."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # Before it is imported.
