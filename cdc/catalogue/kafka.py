"""Catalogue entries CDC-KAFKA-nnn: Kafka as the log; see the package's docstring.

1nn: reaching a cluster and making topics. 2nn: what is there is not the log that was expected (rule R3, never repaired silently).
Numbers are never given to another meaning.
"""

from cdc.errors import EXIT_CONFIG, EXIT_UNAVAILABLE, Entry

_ANEW = "begin a new log: `cdc drop`, delete the pipeline's topics, then start again; the source is loaded anew."

ENTRIES: dict[str, Entry] = {
    "CDC-KAFKA-101": Entry(
        "Kafka does not answer as it should",
        "The brokers are away, busy or between leaders. What was not acknowledged counts as not written until the log's end has been "
        "read again; nothing is lost.",
        "Check the brokers and the addresses under `log:`; the service tries again by itself.",
        EXIT_UNAVAILABLE,
    ),
    "CDC-KAFKA-102": Entry(
        "Kafka refuses the login",
        "The brokers and this client do not agree on who it is, or on TLS.",
        "Correct the `security.protocol`, `sasl.*` and `ssl.*` options of the log, or the user's credentials in the cluster.",
        EXIT_CONFIG,
    ),
    "CDC-KAFKA-103": Entry(
        "Kafka does not allow it",
        "The user lacks a right on a topic, a group or a transactional id of the pipeline.",
        "Grant on topics, groups and transactional ids with the pipeline's prefix what docs/how-to/kafka.md lists, or make the topics "
        "beforehand.",
        EXIT_CONFIG,
    ),
    "CDC-KAFKA-104": Entry(
        "the brokers cannot keep this log",
        "Transactions are exact only with brokers of Kafka 3.6 or later that verify the partitions of each one.",
        "Use Kafka 3.6 or later, with `transaction.partition.verification.enable=true` on every broker.",
    ),
    "CDC-KAFKA-105": Entry(
        "an option of the Kafka client cannot be used",
        "It is one that the log's guarantees depend on and therefore sets itself, or librdkafka does not take it.",
        "Take the option out of the log's `options`, or correct its value.",
        EXIT_CONFIG,
    ),
    "CDC-KAFKA-106": Entry(
        "a topic cannot be made",
        "The cluster refuses the topic's name, replication factor, partitions or settings.",
        "Correct `replication`, `partitions` or the table's `topic:`, or change the cluster's policy.",
    ),
    "CDC-KAFKA-107": Entry(
        "two topics' names are the same to Kafka",
        "Kafka refuses two topics whose names differ only in `.` and `_`, and two tables cannot share one topic.",
        "Give one of the tables an explicit `topic:` in its rule.",
        EXIT_CONFIG,
    ),
    "CDC-KAFKA-108": Entry(
        "the transaction was taken away",
        "The brokers ended this process's transaction: a newer capture of the pipeline has begun, or the transaction outlived its "
        "timeout. Which of them is read from the log next; nothing is lost.",
        "Nothing, if it happens once; the service tries again by itself. If it repeats, look for a second capture of the pipeline.",
        EXIT_UNAVAILABLE,
    ),
    "CDC-KAFKA-109": Entry(
        "somebody else writes to a topic of the log",
        "The records of one transaction did not get consecutive offsets. The transaction was not committed; the service tries again.",
        "Take the right to write to the pipeline's topics from everybody but its capture.",
        EXIT_UNAVAILABLE,
    ),
    "CDC-KAFKA-201": Entry(
        "a topic of the log is missing",
        "The log has written to this topic and it is not there any more. What it held cannot be read, so nothing after it is.",
        _ANEW[0].upper() + _ANEW[1:],
    ),
    "CDC-KAFKA-202": Entry(
        "a topic of the log was made again",
        "A topic of this name is there, but it is not the one that the log has written to: it was deleted and created again.",
        f"Stop whatever deletes the pipeline's topics; then {_ANEW}",
    ),
    "CDC-KAFKA-203": Entry(
        "a topic of the log was truncated",
        "Records that checkpoints speak of are not there: they were deleted, or an unclean leader election lost them.",
        _ANEW[0].upper() + _ANEW[1:],
    ),
    "CDC-KAFKA-204": Entry(
        "a topic's settings would lose records",
        "A topic of the log is compacted, deletes by time or size, or takes smaller records than the log's limit. Nothing is written "
        "while that is so.",
        "Set the topic back with `kafka-configs.sh --alter`, as the message says; then start again.",
    ),
    "CDC-KAFKA-205": Entry(
        "a topic has fewer partitions than the log uses",
        "The number of partitions of a table is fixed when its topic is made, so that each key stays where it is.",
        "Give the topic that many partitions, or name another topic by `topic:` in the table's rule before it is first captured.",
    ),
    "CDC-KAFKA-206": Entry(
        "the log is of another cluster",
        "The checkpoints say that they were written in another Kafka cluster: these are a mirror's topics, or a copy's.",
        f"Correct the addresses under `log:`, or {_ANEW}",
    ),
    "CDC-KAFKA-207": Entry(
        "the topic is not this log's",
        "A topic with a name of ours, or with a table's, is there already with records that are not of this log.",
        "Give the pipeline another name, or the table another `topic:`; or delete the topic if nobody needs it.",
    ),
    "CDC-KAFKA-208": Entry(
        "records of a checkpoint are missing",
        "A range of offsets that a checkpoint names holds fewer committed records than it says.",
        _ANEW[0].upper() + _ANEW[1:],
    ),
    "CDC-KAFKA-209": Entry(
        "the log has lost its end",
        "A checkpoint that was acknowledged to this process is no longer in the log.",
        f"Look at the brokers for an unclean election or lost disks; then {_ANEW}",
    ),
}
