"""Diffusion models on imbalanced data, with capacity reserved and allocated for minorities (CALL)."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("callkit")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
