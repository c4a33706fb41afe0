"""Which partition a key goes to: Kafka's murmur2 of the key's *body* (protocol A5). Pure.

Without the five bytes of magic and schema id, that is: with them a new version of a table would move its keys to other partitions.
"""

from __future__ import annotations

from struct import unpack_from

from cdc.avro import HEADER_BYTES
from cdc.records import Records

_MASK, _FACTOR, _SEED = 0xFFFFFFFF, 0x5BD1E995, 0x9747B28C


def murmur2(data: bytes) -> int:
    """32 bits, unsigned; what Kafka's clients compute."""
    length = len(data)
    found = _SEED ^ length
    for word in unpack_from(f"<{length // 4}I", data):
        mixed = word * _FACTOR & _MASK
        found = found * _FACTOR & _MASK ^ (mixed ^ mixed >> 24) * _FACTOR & _MASK
    if rest := data[length & ~3 :]:
        found = (found ^ int.from_bytes(rest, "little")) * _FACTOR & _MASK
    found = (found ^ found >> 13) * _FACTOR & _MASK
    return found ^ found >> 15


def partition_of(key: bytes | None, count: int) -> int:
    """Of `count` partitions; records without a key (those of keyless tables, TRUNCATE) go to the first one."""
    return 0 if key is None else (murmur2(key[HEADER_BYTES:]) & 0x7FFFFFFF) % count


def divided(records: Records, count: int) -> list[Records]:
    """The records of each of `count` partitions, in order."""
    if count == 1:
        return [records]
    parts = [Records() for _ in range(count)]
    for key, value in zip(records.keys, records.values, strict=True):
        part = parts[partition_of(key, count)]
        part.keys.append(key)
        part.values.append(value)
    return parts
