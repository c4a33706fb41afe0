"""Every error code, by area. `cdc explain` and docs/reference/errors.md are made from this; nothing else knows the texts.

| prefix | area | module |
|---|---|---|
| CDC-CFG | configuration, command line | `config` |
| CDC-PG | Postgres as a source | `postgres` |
| CDC-LOG | the log | `log` |
| CDC-KAFKA | Kafka as the log | `kafka` |
| CDC-REG | an external schema registry | `registry` |
| CDC-TGT | targets | `target` |
| CDC-RPL | replay | `replay` |
| CDC-RUN | processes and services | `run` |
| CDC-DEMO | the demo's own Postgres | `demo` |
"""

from cdc.catalogue import config, demo, kafka, log, postgres, registry, replay, run, target
from cdc.errors import Entry

CATALOGUE: dict[str, Entry] = {
    **config.ENTRIES,
    **postgres.ENTRIES,
    **log.ENTRIES,
    **kafka.ENTRIES,
    **registry.ENTRIES,
    **target.ENTRIES,
    **replay.ENTRIES,
    **run.ENTRIES,
    **demo.ENTRIES,
}
