"""The topics of a log as its own story lists them: looked at, and removed.

The invariant: a topic is taken for the log's only if the story names it and its id.
"""

from __future__ import annotations

from contextlib import closing

from confluent_kafka import KafkaException

from cdc.errors import CdcError
from cdc.log.kafka.client import MISSING, TIMEOUT_S, KafkaSettings, admin, error_of
from cdc.log.kafka.story import Story
from cdc.log.kafka.topics import AT_ONCE, Topics, checkpoints_topic, described, own_topics, present

UNTOLD = frozenset({"CDC-KAFKA-203", "CDC-KAFKA-207"})  # the story cannot be told from its beginning


def check_topics(settings: KafkaSettings, pipeline: str) -> None:
    """Raises what stands against reading and writing the pipeline's log, if it has begun."""
    topics = Topics(settings, pipeline)
    with Story(settings, pipeline) as story, closing(topics):
        if present(settings, [checkpoints_topic(pipeline)]) and (seen := story.seen()) is not None:
            birth, place = seen
            topics.verify_own(birth.topics)
            topics.verify(place.topics.values(), place.chain.ends)


def remove_topics(settings: KafkaSettings, pipeline: str) -> list[str]:
    """Delete the topics of the pipeline's log, its checkpoints last; their names. None without a log that can be read, since only
    that tells which topics are its own."""
    try:
        with Story(settings, pipeline) as story:
            seen = story.seen() if present(settings, [checkpoints_topic(pipeline)]) else None
    except CdcError as error:
        if error.code not in UNTOLD:
            raise
        seen = None
    if seen is None:
        return []
    _, place = seen
    ids = {topic.name: topic.id for topic in place.topics.values()}
    client = admin(settings)
    # A topic that was made again is somebody else's.
    ours = [
        name for name, found in described(client, ids, settings.bootstrap).items() if str(found.topic_id) == ids[name]
    ]
    gone = []
    for names in (ours, own_topics(pipeline)[1:], own_topics(pipeline)[:1]):
        for first in range(0, len(names), AT_ONCE):
            for name, future in client.delete_topics(list(names[first : first + AT_ONCE])).items():
                try:
                    future.result(3 * TIMEOUT_S)
                    gone.append(name)
                except KafkaException as error:
                    if error.args[0].code() not in MISSING:
                        raise error_of(error, name) from error
    return gone
