"""Catalogue entries CDC-PG-nnn; see the package's docstring.

100–109 connection and rights · 110–119 the server · 120–129 slot and position · 130–149 tables, publications, standbys ·
150–159 the stream's bytes · 160–169 changes of tables while they are captured · 199 whatever the server refuses besides.
"""

from cdc.errors import EXIT_CONFIG, EXIT_UNAVAILABLE, Entry

_NEW_EPOCH = (
    "Find out what happened to the source. Then `cdc reload --new-epoch` starts a new history and reloads every table; \
the targets stay as they are meanwhile."
)
_RELOAD = "cdc reload TABLE"

ENTRIES: dict[str, Entry] = {
    "CDC-PG-101": Entry(
        "the source is away",
        "The server cannot be reached, is starting or stopping, or the connection broke. Nothing is lost: the replication slot keeps \
what was not stored, and capture resumes from the log's last checkpoint.",
        "Start the server or mend the network. Capture tries again by itself.",
        EXIT_UNAVAILABLE,
    ),
    "CDC-PG-102": Entry(
        "the source refuses the connection",
        "The server answers but does not let this role into this database: a wrong password, role or database name, no line in \
pg_hba.conf, TLS that it demands, or no connection left.",
        "Correct the source's URL, or pg_hba.conf on the server; `psql URL` must work.",
        EXIT_CONFIG,
    ),
    "CDC-PG-103": Entry(
        "bad source URL",
        "libpq does not understand the URL. Special characters in a password must be percent-encoded.",
        "Write postgresql://user:password@host:port/database?option=value.",
        EXIT_CONFIG,
    ),
    "CDC-PG-104": Entry(
        "missing privilege",
        "The role may not do what capture has to do. It needs LOGIN and REPLICATION, USAGE on the schemas and SELECT on the tables.",
        "Have an administrator execute the GRANT that the message names.",
    ),
    "CDC-PG-110": Entry(
        "unsupported server version", "Capture is built for Postgres 14 to 18.", "Use a supported server version."
    ),
    "CDC-PG-111": Entry(
        "no free replication slot",
        "Every pipeline needs a replication slot, and the server's are all taken.",
        "Drop unused slots (SELECT pg_drop_replication_slot('…')), or ALTER SYSTEM SET max_replication_slots and restart.",
    ),
    "CDC-PG-112": Entry(
        "wal_level is not logical",
        "The server's log holds no row changes that could be decoded.",
        "ALTER SYSTEM SET wal_level = 'logical', then restart the server.",
    ),
    "CDC-PG-113": Entry(
        "the server is in recovery",
        "Capture reads the primary: on a standby the rule that makes loads exact does not hold. Where the URL led to the primary \
before, or asks for one by target_session_attrs, capture takes this for a failover under way and tries again by itself.",
        "Point the source's URL at the primary; target_session_attrs=read-write in the URL finds it among several hosts.",
    ),
    "CDC-PG-114": Entry(
        "the database's text has no encoding",
        "In a database of encoding SQL_ASCII nobody knows which characters the bytes mean, so they cannot become Unicode exactly.",
        "Migrate the database to UTF8 first.",
    ),
    "CDC-PG-115": Entry(
        "the role lacks REPLICATION", "Without it no slot can be made or read.", "ALTER ROLE … REPLICATION"
    ),
    "CDC-PG-116": Entry(
        "no free walsender",
        "Each stream occupies a walsender process, and max_wal_senders is reached.",
        "ALTER SYSTEM SET max_wal_senders to a higher number and restart, or end unused streams. Capture tries again by itself.",
        EXIT_UNAVAILABLE,
    ),
    "CDC-PG-117": Entry(
        "a pooler stands between capture and the server",
        "Capture depends on its sessions' settings and transactions, which a pooler such as PgBouncer mixes with others', and on one \
server for the stream and for all reads. In no pooling mode is that certain, and older versions refuse a replication stream.",
        "Put the server's own host and port into the source's URL.",
        EXIT_CONFIG,
    ),
    "CDC-PG-118": Entry(
        "the server gives a silent stream up early",
        "Capture answers the server by its own timer, more often when wal_sender_timeout is short. Below ten seconds any pause, of a \
machine or a network, ends the stream, which then begins anew.",
        "ALTER ROLE … SET wal_sender_timeout = '60s'",
    ),
    "CDC-PG-119": Entry(
        "the log that slots may keep is small against the load",
        "While existing rows are read the server keeps what is written meanwhile. Beyond max_slot_wal_keep_size it gives the slot up, \
and the load begins anew. The expected size is by the planner's figures, which ANALYZE renews.",
        "ALTER SYSTEM SET max_slot_wal_keep_size to at least twice what the load reads, or load fewer tables at a time.",
    ),
    "CDC-PG-120": Entry(
        "the replication slot is gone",
        "The log has a position, but the slot that would resume from it no longer exists: it was dropped, or the server was promoted \
or restored without it. Changes since then cannot be read again.",
        _NEW_EPOCH,
    ),
    "CDC-PG-121": Entry(
        "a slot of this name exists and is not ours",
        "A slot exists that no record in the log accounts for, or it is of another kind or database. Capture never takes over a slot \
that it did not make.",
        "If nothing else uses it: SELECT pg_drop_replication_slot('…'). Otherwise give the pipeline another slot name.",
    ),
    "CDC-PG-122": Entry(
        "older transactions keep the slot waiting",
        "A slot can begin only when every transaction that was running has ended.",
        "End the transactions that the message names, or wait for them. Capture tries again by itself.",
        EXIT_UNAVAILABLE,
    ),
    "CDC-PG-123": Entry(
        "the server has given up the slot",
        "The slot fell further behind than the server allows (max_slot_wal_keep_size, idle_replication_slot_timeout), so the server \
removed what it needed; or pg_resetwal threw the server's log away.",
        _NEW_EPOCH,
    ),
    "CDC-PG-124": Entry(
        "another server than the log's",
        "The system identifier differs: this is not the server, or not a physical copy of the server, that the log was captured from.",
        "Correct the source's URL. If the server was replaced on purpose: `cdc reload --new-epoch`.",
    ),
    "CDC-PG-125": Entry(
        "the server's history has branched",
        "The server was promoted or restored, and its history does not hold all that was captured: transactions that are in the log do \
not exist in it. A promoted standby that has everything, the slot included, is gone on with by itself.",
        _NEW_EPOCH,
    ),
    "CDC-PG-126": Entry(
        "the slot is ahead of the log",
        "Somebody else consumed or advanced the slot, or the log is an old copy: the changes in between were discarded by the server.",
        _NEW_EPOCH,
    ),
    "CDC-PG-127": Entry(
        "the log is ahead of the server",
        "The server does not have what the log holds: it was restored from a backup, or lost its last writes in a crash.",
        _NEW_EPOCH,
    ),
    "CDC-PG-128": Entry(
        "the slot is in use",
        "One slot serves one capture. Another one runs with the same slot name, or its connection has not yet been noticed as dead.",
        "Stop the other capture, or give this pipeline another name. Capture tries again by itself.",
        EXIT_UNAVAILABLE,
    ),
    "CDC-PG-129": Entry(
        "the last captured transaction is not in the source's log",
        "Before anything new is accepted, the last transaction of the log is read again and compared. The server sent another one in \
its place, so its history is not the one that was captured.",
        _NEW_EPOCH,
    ),
    "CDC-PG-130": Entry(
        "confirmed more than is stored",
        "The slot's confirmed position is beyond what capture told the server to forget. It stops rather than lose changes unnoticed.",
        "Find out who else uses the slot; then " + _NEW_EPOCH[0].lower() + _NEW_EPOCH[1:],
    ),
    "CDC-PG-131": Entry(
        "tables are not published",
        "Changes come through a publication. Only a table's owner may add it to one, so either capture's role is a member of the \
owners, or an administrator makes the publication.",
        "Execute the statement that the message names, as the tables' owner.",
    ),
    "CDC-PG-132": Entry(
        "no replica identity",
        "Published without a replica identity, the application's own UPDATE and DELETE on this table would fail.",
        "Add a primary key; or ALTER TABLE … REPLICA IDENTITY USING INDEX, with a unique index on NOT NULL columns, or FULL; or set \
`rules: {schema.table: {insert_only: true}}` in the pipeline file.",
    ),
    "CDC-PG-133": Entry(
        "row security hides rows",
        "Policies would silently shorten what capture reads.",
        "ALTER ROLE … BYPASSRLS, or exclude the table.",
    ),
    "CDC-PG-134": Entry(
        "unlogged table", "Its changes are not in the server's log.", "ALTER TABLE … SET LOGGED, or exclude it."
    ),
    "CDC-PG-135": Entry(
        "the publication leaves changes out",
        "A publication that capture did not make is used as it is; this one does not send every change under the tables' own names.",
        "ALTER PUBLICATION … SET (publish = 'insert, update, delete, truncate', publish_via_partition_root = true)",
    ),
    "CDC-PG-136": Entry(
        "the publication has a row filter",
        "Rows that the filter leaves out would be in the load and not in the stream.",
        "Remove the WHERE clause from the publication; filter in the pipeline instead.",
    ),
    "CDC-PG-137": Entry(
        "no table selected", "The table patterns match no table of the source.", "Correct `tables:`.", EXIT_CONFIG
    ),
    "CDC-PG-138": Entry("a pattern matches nothing", "It is most likely misspelt.", "Correct `tables:`."),
    "CDC-PG-139": Entry(
        "a table cannot be captured",
        "It does not exist, or is of a kind that has no row changes in the server's log: a view, a foreign or temporary table, a leaf \
partition (its root is captured).",
        "Name an ordinary table or a partition root.",
    ),
    "CDC-PG-140": Entry(
        "the server limits what slots retain",
        "While capture is stopped the slot keeps the server's log; beyond the limit the server drops it, and a reload is needed.",
        "Raise the limit well above the longest stop that you plan for, and watch the disk instead.",
    ),
    "CDC-PG-141": Entry(
        "an old transaction is open",
        "Slots begin, and newly published tables load, only after transactions that wrote before have ended.",
        "End it, or wait.",
    ),
    "CDC-PG-142": Entry(
        "the publication is gone",
        "It was dropped, or dropped and made again. What was written meanwhile cannot be read from the slot: the server looks for the \
publication as it was at the time of each change.",
        _NEW_EPOCH,
    ),
    "CDC-PG-143": Entry(
        "a table that is to be published is locked",
        "To put a table into a publication the server takes a lock on it, which a long VACUUM, CREATE INDEX CONCURRENTLY or a schema \
change holds back. Capture does not wait for it: the stream would.",
        "Wait, or end the sessions that the message names. Capture tries again by itself.",
        EXIT_UNAVAILABLE,
    ),
    "CDC-PG-149": Entry(
        "a standby does not confirm",
        "Rows are captured only when every standby in synchronized_standby_slots has them, so that a promoted one lacks nothing that \
was captured. The server holds back the stream for the same reason.",
        "Start the standby that the message names. If it is gone for good, take its slot out of synchronized_standby_slots with ALTER \
SYSTEM SET, then SELECT pg_reload_conf(). Capture tries again by itself.",
        EXIT_UNAVAILABLE,
    ),
    "CDC-PG-150": Entry(
        "not understood in the stream",
        "The replication stream holds something that this version does not know, or a message is damaged. Nothing is skipped.",
        "Report it with the position that the message names; the slot keeps everything.",
    ),
    "CDC-PG-151": Entry(
        "a row that does not fit its table",
        "The server sent a row that is not of the table version announced before it.",
        "Report it with the position that the message names; the slot keeps everything.",
    ),
    "CDC-PG-160": Entry(
        "rows changed without events",
        "Some statements change rows or their meaning without row changes in the server's log. What is noticed of that is healed: the \
table is loaded anew by itself. This was met where a load was on its way already, and a key stored by it cannot be read any more.",
        _RELOAD,
    ),
    "CDC-PG-161": Entry(
        "an unknown type",
        "A column's type is not in the catalog any more, so its values cannot be understood.",
        _RELOAD,
    ),
    "CDC-PG-199": Entry(
        "the source refused a statement",
        "The server answered with an error that capture does not expect at this place.",
        "See the server's message and its log.",
    ),
}
