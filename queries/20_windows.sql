-- How much each user does, by event time. A view with an aggregate over TUMBLE or HOP is a *windowed view*: its counts
-- live from batch to batch, and survive a restart. In each batch it shows every window that changed, whole.

-- Windows of 5 seconds, one after the other.
CREATE VIEW activity_5s AS
SELECT window_start, window_end, user_id, count(*) AS event_count
FROM TUMBLE(valid_events, "timestamp", INTERVAL '5 seconds')
GROUP BY window_start, window_end, user_id;

-- Windows of 1 minute, a new one every 5 seconds: each event counts in twelve of them.
CREATE VIEW activity_1min AS
SELECT window_start, window_end, user_id, count(*) AS event_count
FROM HOP(valid_events, "timestamp", INTERVAL '5 seconds', INTERVAL '1 minute')
GROUP BY window_start, window_end, user_id;

-- Both keep the summary up to date, with what the dimension knows of the user. An event that comes after its window was
-- closed (the watermark has passed its end) is counted in neither; LATE(activity_1min) has it, with the window it missed.
INSERT INTO db.user_activity_summary
SELECT a.window_start, a.window_end, a.user_id, a.event_count, u.name, u.region
FROM activity_5s a LEFT JOIN db.users u ON u.user_id = a.user_id;

INSERT INTO db.user_activity_summary
SELECT a.window_start, a.window_end, a.user_id, a.event_count, u.name, u.region
FROM activity_1min a LEFT JOIN db.users u ON u.user_id = a.user_id;
