"""Catalogue entries CDC-LOG-nnn; see the package's docstring.

1nn: what is on disk is not the log that was expected (rule R3, never repaired silently). 2nn: who writes. 3nn: disk and files.
4nn: content. Numbers are never given to another meaning.
"""

from cdc.errors import EXIT_CONFIG, EXIT_UNAVAILABLE, Entry

ENTRIES: dict[str, Entry] = {
    "CDC-LOG-101": Entry(
        "no log",
        "The folder holds no log. Nothing is created here, because a log that has gone missing must not be replaced by an empty one.",
        "Check the path under `log:`. Start the capture first if the pipeline is new; else restore the folder.",
    ),
    "CDC-LOG-102": Entry(
        "not a log of ours",
        "The folder or one of its files is something else: a symbolic link, another user's folder, a file without our magic, or a "
        "part of another log.",
        "Give the log a folder of its own under `log:`, owned by the user who runs the services.",
    ),
    "CDC-LOG-103": Entry(
        "the log's format is newer",
        "A newer version wrote this log. Reading it with this one could misunderstand it.",
        "Use the version that wrote the log, or a later one.",
    ),
    "CDC-LOG-104": Entry(
        "a part of the log is missing",
        "A segment that the rest of the log refers to is not there. What it held cannot be read, so nothing after it is.",
        "Restore the missing file, or begin a new log: `cdc drop`, then start again; the source is loaded anew.",
    ),
    "CDC-LOG-105": Entry(
        "the log is damaged",
        "A segment was truncated or changed: checksums, counts or structure do not agree with its checkpoints.",
        "Restore the file from a copy, or begin a new log: `cdc drop`, then start again; the source is loaded anew.",
    ),
    "CDC-LOG-106": Entry(
        "the bookmark is not of this log",
        "The reader's bookmark names a checkpoint that this log does not have: it was dropped, restored from an older copy or "
        "replaced by another pipeline's.",
        "Point the sink at the log that it was reading; or `cdc drop --sink NAME`, and it loads anew from this one.",
    ),
    "CDC-LOG-107": Entry(
        "the bookmark is ahead of the log",
        "The target holds changes that the log has lost, as after restoring an older copy of the log.",
        "Restore the newer log; or `cdc drop --sink NAME`, and the sink loads anew from this one.",
    ),
    "CDC-LOG-108": Entry(
        "retention has passed the bookmark",
        "The checkpoints that the reader needs next were removed by the log's retention.",
        "`cdc drop --sink NAME`, then start the sink: it joins anew, and only tables whose last load is no longer in the log are "
        "loaded from the source. Retention `forever` keeps what later sinks need.",
    ),
    "CDC-LOG-109": Entry(
        "the log was replaced while in use",
        "The file that is open is no longer the one in the folder.",
        "Stop all services of the pipeline, find out what moved the folder, and start them again.",
    ),
    "CDC-LOG-110": Entry(
        "the log does not continue the bookmark",
        "A checkpoint names a predecessor that this reader has not applied: the log was forked or restored.",
        "`cdc drop --sink NAME`, and the sink loads anew from this log.",
    ),
    "CDC-LOG-111": Entry(
        "the log is another pipeline's",
        "The tables in this log were captured by a pipeline of another name. Two pipelines never share a log.",
        "Correct the path under `log:`, or the pipeline's name.",
    ),
    "CDC-LOG-120": Entry(
        "an intent of another epoch",
        "The log holds the intent to start an epoch that is not the one to start now.",
        "Please report it, with `cdc status --json`.",
    ),
    "CDC-LOG-121": Entry(
        "a new epoch was asked for",
        "`cdc reload --new-epoch` left a request in the log. The capture ends this attempt and serves it in the next one, where it "
        "opens the source.",
        "Nothing: the capture starts again by itself.",
        EXIT_UNAVAILABLE,
    ),
    "CDC-LOG-130": Entry(
        "a TRUNCATE is not alone",
        "A TRUNCATE ends one checkpoint and begins another; here it shares one with other events of its table.",
        "Please report it; nothing of this checkpoint was applied.",
    ),
    "CDC-LOG-131": Entry(
        "two schemas in one checkpoint",
        "A checkpoint holds one schema per table, so that a change of schema stands between two.",
        "Please report it; nothing of this checkpoint was applied.",
    ),
    "CDC-LOG-132": Entry(
        "an event that is not understood",
        "The kind of an event does not fit its table. It is not skipped.",
        "Use the version that wrote the log, or a later one.",
    ),
    "CDC-LOG-133": Entry(
        "a value cannot be read",
        "A value does not have the form that its schema says.",
        "Please report it; nothing of this checkpoint was applied.",
    ),
    "CDC-LOG-201": Entry(
        "another capture holds this log",
        "One process at a time writes a log.",
        "Stop the other process, or give this pipeline a log of its own.",
    ),
    "CDC-LOG-202": Entry(
        "another capture took the log over",
        "A newer writer stands in the log; this one ends without writing.",
        "Nothing to do if the newer one was started on purpose.",
    ),
    "CDC-LOG-301": Entry(
        "too little free space for the log",
        "Writing stops before the disk is full, so that databases and readers beside it keep working. Nothing is lost: the source "
        "keeps what is not yet in the log.",
        "Free space, or choose retention `applied`; the capture continues by itself.",
        EXIT_UNAVAILABLE,
    ),
    "CDC-LOG-302": Entry(
        "the disk is full",
        "The batch was not written, and nothing of it is visible.",
        "Free space; the capture continues by itself.",
        EXIT_UNAVAILABLE,
    ),
    "CDC-LOG-303": Entry(
        "reading or writing the log failed",
        "The operating system refused. The batch was not acknowledged; the end of the log is read again before the next one.",
        "Check the disk and the system's messages; the service tries again.",
        EXIT_UNAVAILABLE,
    ),
    "CDC-LOG-304": Entry(
        "the log is locked",
        "Another process holds a lock on a file of the log for longer than expected.",
        "Find the process that has the file open; the service tries again.",
        EXIT_UNAVAILABLE,
    ),
    "CDC-LOG-305": Entry(
        "no permission on the log",
        "This user may not read or write the folder or a file of it. Readers need write permission too: they share locks.",
        "Run all services of a pipeline as the folder's owner.",
    ),
    "CDC-LOG-306": Entry(
        "the log is on a network file system",
        "Locks and shared memory are not dependable there, and the log would be damaged.",
        "Put the folder on a local disk, or use Kafka as the log.",
        EXIT_CONFIG,
    ),
    "CDC-LOG-401": Entry(
        "a record is too large",
        "One row, with its old and new image, is larger than the log takes.",
        "Leave its largest columns out of the pipeline, or raise the log's record limit: in Kafka `record_bytes_max`, and then the "
        "topics' `max.message.bytes`, with the commands that the next start names.",
    ),
    "CDC-LOG-402": Entry(
        "unknown schema id",
        "A record names a schema that the log does not hold (rule R4); it is not skipped.",
        "Restore `schemas.sqlite` of this log, or begin a new log.",
    ),
}
