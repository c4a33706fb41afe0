"""Catalogue entries CDC-TGT-nnn; see the package's docstring."""

from cdc.errors import EXIT_CONFIG, EXIT_UNAVAILABLE, Entry

ENTRIES: dict[str, Entry] = {
    "CDC-TGT-101": Entry(
        "the target cannot be reached",
        "No connection, or it was lost. Nothing is half done: the open transaction is rolled back by the server.",
        "Check the target's address and that it is running; the service tries again from the bookmark.",
        EXIT_UNAVAILABLE,
    ),
    "CDC-TGT-102": Entry(
        "the target refuses the login",
        "The server answers, and does not let this role into this database; or the URL is not one that libpq understands.",
        "Check user, password, database name and TLS options of the sink's URL, and the server's pg_hba.conf.",
        EXIT_CONFIG,
    ),
    "CDC-TGT-103": Entry(
        "the sink's role lacks a privilege",
        "The role needs CREATE and TEMPORARY on the database, CREATE on the schemas it makes tables in, and SELECT, INSERT, UPDATE, "
        "DELETE on tables that it did not make; to alter those it needs membership in their owner.",
        "Grant what the message names; `cdc check` prints the statements.",
    ),
    "CDC-TGT-104": Entry(
        "the target is read-only",
        "It is a standby, or default_transaction_read_only is on.",
        "Point the sink's URL at the primary (target_session_attrs=read-write finds it).",
    ),
    "CDC-TGT-105": Entry(
        "the target server is not supported",
        "Postgres 13 or later with the database encoding UTF8 is needed.",
        "Use a newer server, or a database made with ENCODING 'UTF8'.",
    ),
    "CDC-TGT-106": Entry(
        "the target is out of resources",
        "Its disk is full, or it has no memory or connections left. The transaction was rolled back.",
        "Free what the message names; the service tries again from the bookmark.",
        EXIT_UNAVAILABLE,
    ),
    "CDC-TGT-110": Entry(
        "the target has lost its bookmark",
        "`_cdc` holds tables of this sink and no row that says up to where they are, so nothing can be applied exactly once (rule R3).",
        "Restore `_cdc.bookmark` from the backup that the tables came from, or `cdc drop --sink NAME`, and the sink loads "
        "anew.",
    ),
    "CDC-TGT-111": Entry(
        "the bookmark belongs to another log",
        "The target was written from a log with another identity: the log was dropped and begun again, or the pipeline's name is used "
        "twice (rule R3).",
        "Point the sink at the log that it was reading; or `cdc drop --sink NAME`, and it loads anew from this one.",
    ),
    "CDC-TGT-112": Entry(
        "the bookkeeping is of another version",
        "`_cdc` was written by a service that is newer than this one.",
        "Run the newer service.",
    ),
    "CDC-TGT-113": Entry(
        "another process has taken over this sink",
        "The bookmark names a successor. This process has written nothing since and ends.",
        "Nothing to do if the successor was started on purpose; else stop one of the two.",
    ),
    "CDC-TGT-114": Entry(
        "the bookmark has moved",
        "A transaction of this process whose outcome was unknown has committed after all, or a replay has exchanged "
        "rows of its tables. The service goes on from the bookmark.",
        "Nothing to do.",
        EXIT_UNAVAILABLE,
    ),
    "CDC-TGT-115": Entry(
        "the target is busy",
        "A lock was not granted in time, or the server ended this transaction to resolve a deadlock. It was rolled back.",
        "Find the session that holds the lock (pg_blocking_pids); the service tries again from the bookmark.",
        EXIT_UNAVAILABLE,
    ),
    "CDC-TGT-116": Entry(
        "the outcome of a COMMIT is unknown",
        "The connection was lost while COMMIT was on its way. The bookmark says what happened; the service reads it and goes on.",
        "Nothing to do.",
        EXIT_UNAVAILABLE,
    ),
    "CDC-TGT-120": Entry(
        "the target table has another shape",
        "A table of that name exists and cannot take the source's rows as they are. It is never altered destructively.",
        "Change the table as the message says, rename it, or map the source's table to another name with `rename`.",
    ),
    "CDC-TGT-121": Entry(
        "the source's change does not fit the target",
        "The sink follows changes of the source's tables, and the target's table does not change so: something in the target depends "
        "on the column, or the table was made by somebody else and lacks the source's new key.",
        "Change the target table by hand as the message says, or drop it and run `cdc reload` for the table.",
    ),
    "CDC-TGT-122": Entry(
        "a foreign key cannot be put aside",
        "While a table loads, rows come in no order that foreign keys allow, so they are dropped and made again at the end. That needs "
        "membership in the role that owns the referring table.",
        "Grant the owner's role to the sink's, or drop the foreign key until the load is over.",
    ),
    "CDC-TGT-123": Entry(
        "a constraint cannot be made again",
        "It was put aside for a load, and rows do not satisfy it now: a foreign key's other table is not part of the pipeline, or "
        "the target holds rows of its own.",
        "Add the table to the pipeline or mend the rows, or drop the constraint: delete its row from `_cdc.constraints`.",
    ),
    "CDC-TGT-124": Entry(
        "two tables would be written to one",
        "After renaming, two captured tables have the same name at the target.",
        "Correct the rules under `rename`, or exclude one of the tables.",
    ),
    "CDC-TGT-125": Entry(
        "something depends on a column that has to change",
        "The source gave a column another type, or dropped it, and a view, a trigger, a policy or a function of the target uses the "
        "column: Postgres does not change it then. Nothing of the transaction was written.",
        "Keep the definition of what the message names, drop it, start the sink again, and make it again.",
    ),
    "CDC-TGT-126": Entry(
        "the table changed at the source",
        "`evolution` in the pipeline file says that the sink stops at such a change. Nothing of its transaction was written.",
        "Make the change by hand at the target, or take the `stop` out of `evolution`; then start the sink again.",
    ),
    "CDC-TGT-130": Entry(
        "the target refuses a row",
        "The row violates a constraint, a type or a trigger of the target that the source does not have. Nothing of its "
        "transaction was written (rule R11).",
        "Relax the target's constraint or mend the row at the source; the service then goes on from the bookmark.",
    ),
    "CDC-TGT-132": Entry(
        "an event that is not understood",
        "Bytes from the log are not a value or a key of their schema (rule R4). Nothing is skipped.",
        "Check the log's disk; `cdc reload --new-epoch` begins anew from the source.",
    ),
    "CDC-TGT-133": Entry(
        "a TRUNCATE cannot be followed",
        "Rows of the table are referenced by rows of the target that the source's TRUNCATE did not remove.",
        "Drop the foreign key, or add the referring table to the pipeline.",
    ),
    "CDC-TGT-140": Entry(
        "the target refuses a statement",
        "A statement that the service makes failed for a reason that is none of the others: a table was altered or dropped while the "
        "service ran, or this is a defect of ours.",
        "Start the service again: it reads the target's catalogue anew. Please report it if it stays.",
    ),
}
