-- Counts per user in windows of any size and slide; they leave when they close, once, so that a small batch does not write more.
CREATE VIEW counted AS
SELECT window_start, window_end, user_id, count(*) AS event_count
FROM HOP(valid_events, "timestamp", INTERVAL '${WINDOW_SLIDE}', INTERVAL '${WINDOW_SIZE}')
GROUP BY window_start, window_end, user_id;

CREATE EXTERNAL TABLE lake.counted (
  window_start TIMESTAMP, window_end TIMESTAMP, user_id BIGINT, event_count BIGINT, region VARCHAR
) STORED AS PARQUET LOCATION '${LAKE_URL}/counted';
