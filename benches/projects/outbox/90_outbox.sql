-- What handing over costs: every valid event goes into the outbox of a sink that never answers.
CREATE EXTERNAL TABLE es.copies (
  user_id BIGINT, product_id BIGINT, action VARCHAR, "timestamp" TIMESTAMP, device_id VARCHAR, device_type VARCHAR,
  location VARCHAR, user_segment VARCHAR, ip_address VARCHAR, topic VARCHAR, "partition" INT, "offset" BIGINT
) STORED AS ELASTICSEARCH LOCATION 'http://127.0.0.1:9' OPTIONS ('delivery' 'outbox');

INSERT INTO es.copies SELECT * FROM valid_events;
