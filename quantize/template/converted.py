"""What was made of a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Converted:
    """What was written. ``outtype``: of its matrices. ``left_out``: how many weights, by where they stand in the folder."""

    path: Path
    outtype: str
    by: str
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Of the file, or of all files of the folder."""
        files = [self.path] if self.path.is_file() else [path for path in self.path.rglob("*") if path.is_file()]
        return sum(path.stat().st_size for path in files)
