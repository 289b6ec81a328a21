-- What those who watch over the stream want to know: hours, checks of quality, everything that was far from usual. Off, and at
-- no cost, as long as MONITORING_URL is not set.

-- Every record has a time here, valid or not: one without a time of its own counts when Kafka got it.
CREATE VIEW timed AS
SELECT *, coalesce("timestamp", _timestamp) AS moment FROM checked;

-- ── Hours ──────────────────────────────────────────────────────────────────────────────────────────────────────────

CREATE VIEW hours AS
SELECT window_start, window_end,
       count(*) FILTER (WHERE dq_reason IS NULL)                                    AS events,
       count(DISTINCT user_id) FILTER (WHERE dq_reason IS NULL)                     AS users,
       count(*) FILTER (WHERE dq_reason IS NULL AND action = 'view')                AS views,
       count(*) FILTER (WHERE dq_reason IS NULL AND action = 'click')               AS clicks,
       count(*) FILTER (WHERE dq_reason IS NULL AND action = 'search')              AS searches,
       count(*) FILTER (WHERE dq_reason IS NULL AND action = 'add_to_cart')         AS adds_to_cart,
       count(*) FILTER (WHERE dq_reason IS NULL AND action = 'remove_from_cart')    AS removes_from_cart,
       count(*) FILTER (WHERE dq_reason IS NULL AND action = 'purchase')            AS purchases,
       count(*) FILTER (WHERE dq_reason IS NULL AND action = 'login')               AS logins,
       count(*) FILTER (WHERE dq_reason IS NULL AND action = 'logout')              AS logouts,
       count(*) FILTER (WHERE dq_reason IS NOT NULL)                                AS invalid
FROM TUMBLE(timed, moment, INTERVAL '1 hour')
GROUP BY window_start, window_end;

-- The 24 hours before each, read back from the table that they were written to. An INSERT may read a table of its own
-- program if it looks at earlier windows only: `past.window_start < h.window_start`. The second condition says how far back.
CREATE VIEW day_before AS
SELECT h.window_start, count(past.events) AS hours_before,
       round(avg(past.events), 6) AS mean, round(stddev_pop(past.events), 6) AS stddev
FROM hours h LEFT JOIN monitoring.hourly_metrics past
  ON past.window_start < h.window_start AND past.window_start >= h.window_start - INTERVAL '24 hours'
WHERE h.window_end <= current_watermark()
GROUP BY h.window_start;

CREATE VIEW scored_hours AS
SELECT h.*, round(h.invalid / CAST(h.events + h.invalid AS DOUBLE), 6) AS invalid_rate, d.hours_before, d.mean, d.stddev,
       round((h.events - d.mean) / nullif(d.stddev, 0), 4) AS z_score
FROM hours h JOIN day_before d ON d.window_start = h.window_start
WHERE h.window_end <= current_watermark();

INSERT INTO monitoring.hourly_metrics
SELECT window_start, window_end, events, users, views, clicks, searches, adds_to_cart, removes_from_cart, purchases, logins,
       logouts, invalid, invalid_rate, hours_before, mean, stddev, z_score
FROM scored_hours;

-- ── Checks ─────────────────────────────────────────────────────────────────────────────────────────────────────────

CREATE VIEW minutes AS
SELECT window_start, window_end,
       count(*)                                                             AS records,
       count(*) FILTER (WHERE _error IS NULL)                               AS decoded,
       count(*) FILTER (WHERE _error IS NULL AND (user_id IS NULL OR action IS NULL OR "timestamp" IS NULL
                                                  OR device_id IS NULL))    AS incomplete,
       count(*) FILTER (WHERE dq_reason IS NOT NULL)                        AS invalid,
       count(*) FILTER (WHERE dq_reason IS NULL)                            AS events,
       count(*) FILTER (WHERE dq_reason IS NULL AND "timestamp" < _timestamp - INTERVAL '${DQ_DELAY:-60 seconds}') AS delayed,
       -- Each event of the minute is kept until it closes: what costs most here.
       count(DISTINCT concat_ws('|', CAST(user_id AS VARCHAR), CAST(CAST("timestamp" AS BIGINT) AS VARCHAR), action, device_id))
         FILTER (WHERE dq_reason IS NULL)                                   AS different_events
FROM TUMBLE(timed, moment, INTERVAL '1 minute')
GROUP BY window_start, window_end;

-- One row a check. A minute without any record has no window, and so no row.
CREATE VIEW checks AS
SELECT 'completeness' AS check_name, window_start, window_end, decoded AS rows_checked, incomplete AS rows_failed,
       CAST(${DQ_COMPLETENESS:-0.01} AS DOUBLE) AS threshold FROM minutes
UNION ALL
SELECT 'validity', window_start, window_end, records, invalid, CAST(${DQ_VALIDITY:-0.05} AS DOUBLE) FROM minutes
UNION ALL
SELECT 'uniqueness', window_start, window_end, events, events - different_events, CAST(${DQ_UNIQUENESS:-0.01} AS DOUBLE) FROM minutes
UNION ALL   -- came more than DQ_DELAY after it happened
SELECT 'timeliness', window_start, window_end, events, delayed, CAST(${DQ_TIMELINESS:-0.05} AS DOUBLE) FROM minutes
UNION ALL   -- fewer than a minute should have
SELECT 'volume', window_start, window_end, greatest(events, ${DQ_MIN_EVENTS:-1}), greatest(${DQ_MIN_EVENTS:-1} - events, 0), CAST(0 AS DOUBLE)
FROM minutes;

CREATE VIEW judged_checks AS
SELECT *, coalesce(round(rows_failed / nullif(CAST(rows_checked AS DOUBLE), 0), 6), 0) AS failed_ratio
FROM checks
WHERE window_end <= current_watermark();

INSERT INTO monitoring.data_quality_checks
SELECT check_name, window_start, window_end, rows_checked, rows_failed, failed_ratio,
       CASE WHEN failed_ratio > threshold THEN 'failed' ELSE 'passed' END AS status, threshold
FROM judged_checks;

-- ── Anomalies ──────────────────────────────────────────────────────────────────────────────────────────────────────

-- Those of 30_anomalies.sql: a user among all users of a window.
INSERT INTO monitoring.anomaly_detection_results
SELECT 'events_per_user' AS metric, CAST(user_id AS VARCHAR) AS subject, window_start, window_end,
       CAST(event_count AS DOUBLE) AS value, mean, stddev, z_score, 'population' AS method, severity
FROM anomalies;

-- An hour among those before it, be it far above or far below; of which there must be some.
INSERT INTO monitoring.anomaly_detection_results
SELECT 'events_per_hour' AS metric, 'all' AS subject, window_start, window_end, CAST(events AS DOUBLE) AS value, mean, stddev, z_score,
       'history' AS method,
       CASE WHEN abs(z_score) > 5 THEN 'high' WHEN abs(z_score) > 3 THEN 'medium' ELSE 'low' END AS severity
FROM scored_hours
WHERE abs(z_score) >= ${Z_THRESHOLD:-2.0} AND hours_before >= 6;
