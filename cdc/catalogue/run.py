"""Catalogue entries CDC-RUN-nnn; see the package's docstring.

1nn: processes. 2nn: the HTTP endpoints. 3nn: verbs. Numbers are never given to another meaning.
"""

from cdc.errors import EXIT_UNAVAILABLE, Entry

ENTRIES: dict[str, Entry] = {
    "CDC-RUN-101": Entry(
        "a bug",
        "Something happened that this program holds for impossible, so it stopped before it could do harm. What was committed stays "
        "as it is, and a restart continues from there.",
        "Run again with --debug and report the traceback; look it through first, for it can hold values of your rows.",
    ),
    "CDC-RUN-102": Entry(
        "a service of the pipeline failed",
        "One of the processes ended with an error that trying again cannot mend, so the others were stopped too.",
        "Follow the remedy that the service itself printed, then start the pipeline again: it continues where it stopped.",
    ),
    "CDC-RUN-103": Entry(
        "a service could not be started",
        "The operating system refused to start another process.",
        "Check the limits on processes and memory.",
        EXIT_UNAVAILABLE,
    ),
    "CDC-RUN-201": Entry(
        "the address is in use",
        "Each service offers /healthz, /readyz and /metrics over HTTP. The capture listens on `server.bind`, and the sinks, in the "
        "file's order, on the ports after it. Another process listens there already.",
        "Stop the other process, or choose another `server.bind`; port 0 takes any free one.",
    ),
    "CDC-RUN-202": Entry(
        "cannot listen on the address",
        "The host of `server.bind` is not an address of this machine, or the port is reserved for root.",
        "Choose another `server.bind`, such as 127.0.0.1:8484.",
    ),
    "CDC-RUN-301": Entry(
        "no such table in the log",
        "Only tables that capture has met can be loaded again.",
        "Check the name: `cdc status` lists the tables. A new table is loaded by itself once `tables` takes it.",
    ),
    "CDC-RUN-302": Entry(
        "nobody confirmed",
        "This changes a running pipeline or removes data, and there is no terminal to ask on.",
        "Run it again with --yes; --dry-run shows what it would do.",
    ),
    "CDC-RUN-304": Entry(
        "the log does not exist yet",
        "The sink was started before the capture made the log. It waits for it.",
        "Start the capture; check that both services use the same file and the same `log`.",
        EXIT_UNAVAILABLE,
    ),
}
