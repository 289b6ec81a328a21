-- Any topic, to be counted: only what the engine itself knows of a record.
CREATE UNBOUNDED EXTERNAL TABLE records (_partition INT, _offset BIGINT)
STORED AS KAFKA LOCATION '${KAFKA_TOPIC}' OPTIONS ('brokers' '${KAFKA_BROKER}');
