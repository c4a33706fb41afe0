"""The Kafka log's speed by stage: append and read of the bench table's records, beside a bare producer and a bare consumer.

    python -m benchmarks.kafka_log [--rows 5000] [--appends 60]

One broker on this machine, all in turn, so that what else it does slows all alike. The wall time of a stage is that of its median
append. CPU is this process's, librdkafka's threads included, and the broker's beside it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from itertools import cycle

from confluent_kafka import Consumer, TopicPartition

from benchmarks import codec
from benchmarks.rig import cpu_s
from cdc.log import Draft, Mark
from cdc.log.kafka import client
from cdc.log.kafka.client import KafkaSettings
from cdc.log.kafka.log import KafkaLog
from cdc.log.kafka.writer import Writer
from cdc.position import Position
from cdc.records import Records
from cdc.table import TableId
from tests.servers.kafka import Kafka

TABLE, POSITION = TableId("public", "bench"), Position(0, 0, {"lsn": "0/1A2B3C"}, {})
WARM_APPENDS, BLOCK = 60, 10_000
# Each flush waits for acknowledgements: of an append's records, then of its checkpoint.
STAGES = {
    "_check_sizes": ["sizes"],
    "_send": ["produce"],
    "_flush": ["wait for records", "wait for checkpoint"],
    "_commit": ["commit"],
}
STAGE_NAMES = [name for names in STAGES.values() for name in names]


class Costs:
    """Wall and CPU seconds by name, one of each for each time that it was done."""

    def __init__(self, kafka: Kafka) -> None:
        assert kafka.pid is not None
        self._broker = kafka.pid
        self.wall, self.cpu = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
        self.broker_cpu = defaultdict[str, float](float)

    def begin(self) -> tuple[float, float, float]:
        return time.perf_counter(), time.process_time(), cpu_s(self._broker)

    def end(self, name: str, begun: tuple[float, float, float]) -> None:
        wall, cpu, broker = (now - then for now, then in zip(self.begin(), begun, strict=True))
        self.wall[name].append(wall)
        self.cpu[name].append(cpu)
        self.broker_cpu[name] += broker

    def line(self, name: str, rows: int) -> str:
        each = sorted(second / rows * 1e6 for second in self.wall[name])
        cpu = statistics.fmean(self.cpu[name]) / rows * 1e6
        broker = self.broker_cpu[name] / len(each) / rows * 1e6
        least, middle = each[len(each) // 10], statistics.median(each)
        shown = f"  {name}" if name in STAGE_NAMES else name
        return f"{shown:36} {middle:9.2f} {least:9.2f} {cpu:9.2f} {broker:9.2f}"


def clocked(costs: Costs) -> None:
    """Count the stages of an append from now on."""

    def wrap(method: str, names: Iterator[str]) -> None:
        real = getattr(Writer, method)

        def counted(*args: object) -> object:
            begun = costs.begin()
            result = real(*args)
            costs.end(next(names), begun)
            return result

        setattr(Writer, method, counted)

    for method, names in STAGES.items():
        wrap(method, cycle(names))


def append(log: KafkaLog, records: Records) -> None:
    log.append({TABLE: records}, Draft(POSITION, True))


def read(log: KafkaLog, rows: int) -> None:
    with closing(log.read(Mark(-1, log.id), lambda _table: True, 1.0)) as items:
        while rows > 0:
            if (item := next(items)) is not None:
                rows -= sum(map(len, item[1].values()))


def bare_read(settings: KafkaSettings, topic: str, rows: int) -> None:
    """As fast as the client gives messages, which nobody looks at."""
    reading: Consumer = client.consumer(settings, "bare", fetch_queue_backoff_ms=5)
    reading.assign([TopicPartition(topic, 0, 0)])
    while rows > 0:
        rows -= len(reading.consume(BLOCK, 1.0))
    reading.close()


def run(kafka: Kafka, rows: int, appends: int) -> None:
    records = codec.streamed([codec.fields(i) for i in range(500_000, 500_000 + rows)])
    settings, costs = KafkaSettings(kafka.bootstrap), Costs(kafka)
    bare = client.producer(settings)
    kafka.make_topic("bare")

    def produce() -> None:
        for key, value in zip(records.keys, records.values, strict=True):
            bare.produce("bare", value, key, 0)
        bare.flush()

    with KafkaLog(settings, "bench") as log:
        log.open_writer()
        for _ in range(WARM_APPENDS):
            append(log, records)
            produce()
        clocked(costs)
        for _ in range(appends):
            begun = costs.begin()
            append(log, records)
            costs.end("append", begun)
            begun = costs.begin()
            produce()
            costs.end("bare producer", begun)
        everything = (WARM_APPENDS + appends) * rows
        for _ in range(3):
            for name, reading in (
                ("read", lambda: read(log, everything)),
                ("bare consumer", lambda: bare_read(settings, "bench.public.bench", everything)),
            ):
                begun = costs.begin()
                reading()
                costs.end(name, begun)
    size = sum(map(len, records.values)) / rows
    print(f"{rows} records of {size:.0f} bytes in an append; µs per record, wall: median and tenth part, CPU: mean")
    print(f"{'':36} {'median':>9} {'tenth':>9} {'our CPU':>9} {'broker':>9}")
    for name in ("append", *STAGE_NAMES, "bare producer"):
        print(costs.line(name, rows))
    for name in ("read", "bare consumer"):
        print(costs.line(name, everything))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=5_000)
    parser.add_argument("--appends", type=int, default=60)
    args = parser.parse_args()
    with Kafka(heap_max_mb=1024, jvm=()) as kafka:
        run(kafka, args.rows, args.appends)


if __name__ == "__main__":
    main()
