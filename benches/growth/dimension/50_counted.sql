-- The table `users` with what is needed of it: of a million rows all columns are more than a dimension may hold.
CREATE EXTERNAL TABLE db.regions (user_id BIGINT, region VARCHAR, PRIMARY KEY (user_id))
STORED AS DATABASE LOCATION '${DATABASE_URL}' OPTIONS ('table' 'users');

INSERT INTO lake.counted
SELECT c.*, r.region FROM counted c LEFT JOIN db.regions r ON r.user_id = c.user_id WHERE c.window_end <= current_watermark();
