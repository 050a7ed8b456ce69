"""Plain data at the border: what is read from outside, the strict models that it becomes, what is written."""

from __future__ import annotations

from edgediff.config.models import M, Model, describe_error, dump_json, parse
from edgediff.config.outside import (
    Limits,
    check_plain,
    load_plain,
    load_toml,
    parse_outside,
    read_lines,
    read_outside,
    read_text,
)
from edgediff.config.storage import cache_folder, write_bytes_atomic, write_text_atomic

__all__ = [
    "Limits",
    "M",
    "Model",
    "cache_folder",
    "check_plain",
    "describe_error",
    "dump_json",
    "load_plain",
    "load_toml",
    "parse",
    "parse_outside",
    "read_lines",
    "read_outside",
    "read_text",
    "write_bytes_atomic",
    "write_text_atomic",
]
