-- Every valid event as a document: what a bulk loader is measured against.
CREATE EXTERNAL TABLE es.documents (
  user_id BIGINT, product_id BIGINT, action VARCHAR, "timestamp" TIMESTAMP, device_id VARCHAR, device_type VARCHAR, location VARCHAR,
  user_segment VARCHAR, ip_address VARCHAR, "partition" INT, "offset" BIGINT, PRIMARY KEY ("partition", "offset")
) STORED AS ELASTICSEARCH LOCATION '${ELASTICSEARCH_URL}'
OPTIONS ('index' '${BENCH_INDEX}', 'bulk.rows' '${ES_BULK_CHUNK:-2000}', 'bulk.in_flight' '${BENCH_IN_FLIGHT:-2}', 'compression' '${BENCH_COMPRESSION:-gzip}');

INSERT INTO es.documents
SELECT user_id, product_id, action, "timestamp", device_id, device_type, location, user_segment, ip_address, "partition", "offset" FROM valid_events;
