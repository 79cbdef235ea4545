"""The runtimes' threads sleep while they wait: several test processes share the cores, and spinning ones starve each other."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before any runtime is loaded
