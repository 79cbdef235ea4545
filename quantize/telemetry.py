"""Nothing is sent and nothing is looked up: libraries that do either are told not to, before they start.

Importing any of our packages is enough, but it comes before an ``import onnxruntime`` of one's own: that one keeps a device id
at once. What stands in the environment is replaced; who wants to report to a library's maker does so without us.
"""

from __future__ import annotations

import os

OFF = {
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime from 1.29 on, and onnxruntime-genai: file and graph names, hashes, a device id
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}  # for a process that never needs Hugging Face's hub

os.environ.update(OFF)


def stay_offline() -> None:
    """For the command: transformers and huggingface_hub, not yet imported, ask no hub. A program that imports us still may."""
    os.environ.update(OFFLINE)
