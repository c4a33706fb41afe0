"""Catalogue entries CDC-REG-nnn: an external schema registry; see the package's docstring.

1nn: reaching it. 2nn: what it says to a schema. 3nn: its ids in the log. Numbers are never given to another meaning.
"""

from cdc.errors import EXIT_CONFIG, EXIT_UNAVAILABLE, Entry

ENTRIES: dict[str, Entry] = {
    "CDC-REG-101": Entry(
        "the schema registry does not answer",
        "It is away or busy. A new version of a table needs its id before any of its events can be written; what the source has "
        "meanwhile waits there.",
        "Check the registry and the address under `registry:`; the service tries again by itself.",
        EXIT_UNAVAILABLE,
    ),
    "CDC-REG-102": Entry(
        "the schema registry refuses the login",
        "The credentials are wrong, or this user may not read and write the pipeline's subjects.",
        "Correct `basic.auth.user.info`, `bearer.auth.*` or the client certificate in the registry's `options`, or the user's rights.",
        EXIT_CONFIG,
    ),
    "CDC-REG-103": Entry(
        "the registry's address or an option cannot be used",
        "confluent-kafka's client does not take it, or it is one that is not the user's to choose.",
        "Correct `registry:` in the pipeline file.",
        EXIT_CONFIG,
    ),
    "CDC-REG-104": Entry(
        "the client of schema registries is not installed",
        "An external registry needs packages that nothing else needs.",
        "pip install 'penstock[registry]'",
        EXIT_CONFIG,
    ),
    "CDC-REG-105": Entry(
        "there is no schema registry at this address",
        "Something else answers there, or the path of the registry's API is missing.",
        "Give the whole URL of the Confluent-compatible API, such as http://registry:8081, or http://apicurio:8080/apis/ccompat/v7.",
        EXIT_CONFIG,
    ),
    "CDC-REG-106": Entry(
        "no secure connection to the schema registry",
        "The certificate is not trusted, is another host's or has expired, or the two sides do not agree on TLS.",
        "Give the authority's certificate as `ssl.ca.location` in the registry's `options`, or correct the URL.",
        EXIT_CONFIG,
    ),
    "CDC-REG-201": Entry(
        "the schema registry takes no incompatible schema",
        "A table changed in a way that readers of its earlier versions cannot follow. Such a version is registered with the subject's "
        "compatibility set to NONE, and the registry did not let that be done. Nothing of the new version was written.",
        "Set the subject's compatibility to NONE, or let the pipeline's user do it; then start again.",
    ),
    "CDC-REG-202": Entry(
        "the schema registry refuses a schema",
        "It does not hold the schema for valid, is in read-only mode, or has a rule against it. Nothing of this version was written.",
        "Read what the registry says, and change its mode or its rules; then start again.",
    ),
    "CDC-REG-203": Entry(
        "the schema registry does not know it",
        "The registry has no such schema or subject.",
        "Restore the registry, or correct its address; the log has all the pipeline's schemas, and serves them by `cdc registry`.",
    ),
    "CDC-REG-301": Entry(
        "two schemas with one id",
        "The registry gave an id that stands in the log for another schema: it was emptied or replaced, or `registry:` names another "
        "one than before. Readers would take one table's records for another's, so nothing was written.",
        "Restore the registry that the log was written with, or name it under `registry:`; or begin a new log: `cdc drop`, then start "
        "again; the source is loaded anew.",
    ),
}
