"""Where a configuration becomes a log: the only place that knows which kind it is. Like `cdc.commands.wiring`, for the log.

The invariant: looking at a log (`look`, `check`, `exists`) neither makes nor locks one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cdc.config import Config
from cdc.errors import CdcError
from cdc.log import Log, Surveyor
from cdc.log.embedded import EmbeddedLog
from cdc.log.folder import Folder, WriterLock
from cdc.log.survey import FolderSurveyor
from cdc.registry.external import ExternalRegistry
from cdc.source import Finding

if TYPE_CHECKING:
    from cdc.log.kafka.client import KafkaSettings


def settings(config: Config) -> KafkaSettings:
    """The cluster of a Kafka log."""
    from cdc.log.kafka.client import KafkaSettings

    log = config.log
    return KafkaSettings(
        log.url,
        log.options,
        log.replication,
        log.partitions,
        log.record_bytes_max,
        log.retention,
        {table: rule.topic for table, rule in config.rules.items() if rule.topic},
    )


def open_log(config: Config, *, create: bool = False) -> Log:
    """The pipeline's log. Raises CDC-LOG-101 where there is none, unless it may be made, CDC-LOG-111 for another pipeline's."""
    log: Log
    if config.log.url:
        from cdc.log.kafka.log import KafkaLog

        log = KafkaLog(settings(config), config.pipeline, create=create, registry=registry(config))
    else:
        log = EmbeddedLog(
            config.log.path,
            segment_bytes=config.log.segment_bytes,
            free_bytes_min=config.log.free_bytes_min,
            retention=config.log.retention,
            create=create,
            registry=registry(config),
        )
    if log.pipeline not in (None, config.pipeline):
        log.close()
        raise CdcError("CDC-LOG-111", f"it holds the tables of {log.pipeline}", where=config.log.where)
    return log


def registry(config: Config) -> ExternalRegistry | None:
    """The external schema registry, if there is one. It connects when it is first asked. Raises CDC-REG-103."""
    return ExternalRegistry(config.registry.url, config.registry.options) if config.registry else None


def look(config: Config) -> AbstractContextManager[Surveyor]:
    """A look at the log beside its writer. Raises CDC-LOG-101 where there is none."""
    if config.log.url:
        from cdc.log.kafka.survey import KafkaSurveyor

        return KafkaSurveyor(settings(config), config.pipeline)
    return FolderSurveyor(config.log.path)


def exists(config: Config) -> bool:
    """Is there a log, whatever its state?"""
    if config.log.url:
        from cdc.log.kafka.topics import checkpoints_topic, present

        return bool(present(settings(config), [checkpoints_topic(config.pipeline)]))
    return config.log.path.exists()


def check(config: Config) -> list[Finding]:
    """What stands against writing the log. Raises the first error."""
    if config.log.url:
        from cdc.log.kafka.inventory import check_topics
        from cdc.log.kafka.topics import check_cluster

        findings = check_cluster(settings(config))
        check_topics(settings(config), config.pipeline)
        if exists(config):
            with closing(open_log(config)) as log:
                log.last_checkpoint()
        return findings
    path = config.log.path
    if Folder(path).exists():
        with closing(open_log(config)) as log:
            log.last_checkpoint()
    above = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not os.access(above, os.W_OK | os.X_OK):
        raise CdcError("CDC-LOG-305", f"{above} is not writable for this user", where=str(path))
    free = shutil.disk_usage(above).free
    if free < config.log.free_bytes_min:
        detail = f"{free} bytes are free, {config.log.free_bytes_min} must stay so"
        raise CdcError("CDC-LOG-301", detail, where=str(path))
    return []


# ----------------------------------------------------------------------------------------------------------------- removal
@contextmanager
def alone(config: Config) -> Iterator[None]:
    """Keep a capture from running meanwhile: an embedded log's writer lock is held. Raises CDC-LOG-201 when one runs.

    A Kafka log has no such lock: there the source's slot, which a running capture holds, refuses to be dropped."""
    if config.log.url or not config.log.path.exists():
        yield
        return
    lock = WriterLock(Folder(config.log.path))
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


def refuse_foreign(config: Config) -> None:
    """A missing or damaged log is no reason not to drop a pipeline; a folder that is none, or another pipeline's log, is."""
    for looks, foreign in (
        (lambda: exists(config) if config.log.url else Folder(config.log.path).exists(), "CDC-LOG-102"),
        (lambda: open_log(config).close(), "CDC-LOG-111"),
    ):
        try:
            looks()
        except CdcError as error:
            if error.code == foreign:
                raise


def remove(config: Config) -> list[str]:
    """Remove the log with everything in it; what was removed, in words."""
    if config.log.url:
        from cdc.log.kafka.inventory import remove_topics

        return [f"topic {name}" for name in remove_topics(settings(config), config.pipeline)]
    return _remove_folder(config.log.path)


def _remove_folder(path: Path) -> list[str]:
    """Renamed first, so that what an interrupted removal leaves is not taken for a damaged log."""
    doomed = path.with_name(f"{path.name}.dropped")
    if doomed.exists():
        shutil.rmtree(doomed)
    if not path.exists():
        return []
    path.rename(doomed)
    shutil.rmtree(doomed)
    return [f"log {path}"]
