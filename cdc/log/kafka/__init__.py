"""The log over Kafka topics (protocols A1–A6, A8, A9): see `cdc.log.kafka.log.KafkaLog`."""
