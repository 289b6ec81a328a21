-- Who does far more than the others. All of it is plain SQL over the windowed views.

-- The mean and the standard deviation over *all* users of a window. Both sizes go in together: a window is told from
-- another by its start and end. Rounded, so that the last bit of a floating-point number decides nothing.
CREATE VIEW population AS
SELECT window_start, window_end, user_id, event_count,
       round(avg(event_count) OVER w, 6)        AS mean,
       round(stddev_pop(event_count) OVER w, 6) AS stddev
FROM (SELECT * FROM activity_5s UNION ALL SELECT * FROM activity_1min)
WINDOW w AS (PARTITION BY window_start, window_end);

-- How many deviations a user is above the mean. If all users did the same, the deviation is 0 and there is no score.
CREATE VIEW scored AS
SELECT *, round((event_count - mean) / nullif(stddev, 0), 4) AS z_score
FROM population;

-- What counts as an anomaly. `window_end <= current_watermark()` waits until a window is closed: then no event can change it
-- any more, and each window is judged exactly once, with all its users.
CREATE VIEW judged AS
SELECT *, event_count > ${ANOMALY_THRESHOLD:-5} AND z_score >= ${Z_THRESHOLD:-2.0} AS is_anomaly
FROM scored
WHERE window_end <= current_watermark();

CREATE VIEW anomalies AS
SELECT *, CASE WHEN z_score > 5 THEN 'high' WHEN z_score > 3 THEN 'medium' ELSE 'low' END AS severity
FROM judged
WHERE is_anomaly;

INSERT INTO db.anomalous_events
SELECT user_id, window_start, window_end, event_count, mean, stddev, z_score, severity FROM anomalies;

INSERT INTO kafka.anomaly_alerts
SELECT user_id, window_start, window_end, event_count, z_score, severity FROM anomalies
WHERE severity IN ('medium', 'high');
