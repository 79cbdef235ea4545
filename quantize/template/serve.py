"""Answers one request with code of others, in a process of its own. Imports nothing of ours.

usage: serve.py ADAPTER      # a script that has answer(request) -> dict, both JSON objects

The request comes as JSON on stdin, the last line of stdout is the answer, or {"error": why}.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import time
from threading import Thread
from typing import NoReturn


def main() -> None:
    """One request. Whatever goes wrong is an answer."""
    request = json.load(sys.stdin)
    Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    try:
        no_code_of_others()
        answer = runpy.run_path(sys.argv[1])["answer"](request)
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    sys.stdout.write("\n" + json.dumps(answer) + "\n")


def _end_with(parent: int) -> None:
    """Nobody waits for an answer any more when the process that asked is gone."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def no_code_of_others() -> None:
    """Converters ask for it here and there; a model's own Python and pickles run nowhere."""
    import torch
    from transformers import dynamic_module_utils

    def refused(*_: object, **__: object) -> NoReturn:
        raise RuntimeError("the model brings code of its own, which is never run")

    dynamic_module_utils.get_class_from_dynamic_module = refused
    dynamic_module_utils.get_imports = refused
    torch.load = refused


if __name__ == "__main__":
    main()
