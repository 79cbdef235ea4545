"""Every fault that a user can mend, as one tree; the command line prints the message as one line and exits with 2.

AdaDimError
├── CheckpointError    the source model is missing, truncated, malformed, not finite or of an unknown architecture
├── ConfigError        options or a recipe that contradict one another, or that the target cannot hold
├── PlanError          a tensor whose shape no allowed grid fits
├── CalibrationError   a text or an importance matrix that is missing, damaged, too short or another model's
├── StoreError         a store that is missing, incomplete or damaged
├── ExportError        a file that cannot be written as asked
├── FileFormatError    an exported file that cannot be read as what it claims to be
└── OutputError        an output that exists already, is not writable, or a full disk

A message says what is wrong, where (file, tensor, numbers) and what to do. Our own bugs are assertions, never these.
"""

from __future__ import annotations


class AdaDimError(Exception):
    """Base of every error that is the user's to mend."""


class CheckpointError(AdaDimError):
    """The source model cannot be used."""


class ConfigError(AdaDimError):
    """Options contradict one another or the target."""


class PlanError(AdaDimError):
    """A tensor fits none of the allowed grids."""


class CalibrationError(AdaDimError):
    """A text, or an importance matrix, cannot be used for calibration or evaluation."""


class StoreError(AdaDimError):
    """A store is missing, incomplete or damaged."""


class ExportError(AdaDimError):
    """A store cannot be written in the format asked for."""


class FileFormatError(AdaDimError):
    """An exported file is not what it claims to be."""


class OutputError(AdaDimError):
    """An output exists already or cannot be written."""
