"""Catalogue entries CDC-CFG-nnn; see the package's docstring."""

from cdc.errors import Entry

ENTRIES: dict[str, Entry] = {}
