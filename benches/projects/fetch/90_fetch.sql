-- The floor: records are consumed, read as JSON without a field of them being kept, and counted, one row a batch.
CREATE SCHEMA bench;
CREATE UNBOUNDED EXTERNAL TABLE bench.records (_partition INT, _offset BIGINT)
STORED AS KAFKA LOCATION '${KAFKA_TOPIC}' OPTIONS ('brokers' '${KAFKA_BROKER}');

CREATE EXTERNAL TABLE lake.fetched (events BIGINT) STORED AS PARQUET LOCATION '${LAKE_URL}/fetched';

INSERT INTO lake.fetched SELECT count(*) AS events FROM bench.records;
