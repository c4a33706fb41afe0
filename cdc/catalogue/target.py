"""Catalogue entries CDC-TGT-nnn; see the package's docstring."""

from cdc.errors import Entry

ENTRIES: dict[str, Entry] = {}
