-- The table `users` with what is needed of it: of a million rows all columns are more than a dimension may hold.
CREATE EXTERNAL TABLE db.regions (user_id BIGINT, region VARCHAR, PRIMARY KEY (user_id))
STORED AS DATABASE LOCATION '${DATABASE_URL}' OPTIONS ('table' 'users');

INSERT INTO lake.counted
SELECT c.*, r.region FROM counted c LEFT JOIN db.regions r ON r.user_id = c.user_id WHERE c.window_end <= current_watermark();

-- Every event is looked up, too.
CREATE EXTERNAL TABLE lake.by_region (region VARCHAR, events BIGINT) STORED AS PARQUET LOCATION '${LAKE_URL}/by_region';
INSERT INTO lake.by_region
SELECT r.region, count(*) AS events FROM valid_events e LEFT JOIN db.regions r ON r.user_id = e.user_id GROUP BY r.region;
