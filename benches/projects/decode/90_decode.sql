-- One step beyond the floor: every field of every record is decoded and looked at, one row a batch is written.
CREATE EXTERNAL TABLE lake.decoded (
  events BIGINT, undecodable BIGINT, user_id BIGINT, product_id BIGINT, action BIGINT, "timestamp" BIGINT,
  device_id BIGINT, device_type BIGINT, location BIGINT, user_segment BIGINT, ip_address BIGINT
) STORED AS PARQUET LOCATION '${LAKE_URL}/decoded';

INSERT INTO lake.decoded
SELECT count(*), count(_error), count(user_id), count(product_id), count(action), count("timestamp"),
       count(device_id), count(device_type), count(location), count(user_segment), count(ip_address)
FROM kafka.user_events;
