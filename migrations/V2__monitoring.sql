-- What monitoring asks for. The first three tables are written by queries/50_monitoring.sql where MONITORING_URL is set.

CREATE TABLE hourly_metrics (
    window_start       timestamp PRIMARY KEY,
    window_end         timestamp NOT NULL,
    events             bigint NOT NULL,
    users              bigint NOT NULL,
    views              bigint NOT NULL,
    clicks             bigint NOT NULL,
    searches           bigint NOT NULL,
    adds_to_cart       bigint NOT NULL,
    removes_from_cart  bigint NOT NULL,
    purchases          bigint NOT NULL,
    logins             bigint NOT NULL,
    logouts            bigint NOT NULL,
    invalid            bigint NOT NULL,
    invalid_rate       double precision NOT NULL,
    hours_before       bigint NOT NULL,
    mean               double precision,
    stddev             double precision,
    z_score            double precision
);
COMMENT ON TABLE hourly_metrics IS 'One row per hour that is over, and had a record.';
COMMENT ON COLUMN hourly_metrics.events IS 'Valid ones, those produced twice twice; so are the counts of each action.';
COMMENT ON COLUMN hourly_metrics.invalid_rate IS 'invalid / (events + invalid).';
COMMENT ON COLUMN hourly_metrics.z_score IS '(events - mean) / stddev, over the hours_before of the 24 hours before it; NULL where there are none, or all are alike.';

CREATE TABLE data_quality_checks (
    check_name    text NOT NULL CHECK (check_name IN ('completeness', 'validity', 'uniqueness', 'timeliness', 'volume')),
    window_start  timestamp NOT NULL,
    window_end    timestamp NOT NULL,
    rows_checked  bigint NOT NULL,
    rows_failed   bigint NOT NULL,
    failed_ratio  double precision NOT NULL,
    status        text NOT NULL CHECK (status IN ('passed', 'failed')),
    threshold     double precision NOT NULL,
    PRIMARY KEY (check_name, window_start, window_end)
);
COMMENT ON TABLE data_quality_checks IS 'One row per check and minute that is over. A ratio above the threshold fails.';

CREATE TABLE anomaly_detection_results (
    metric        text NOT NULL,
    subject       text NOT NULL,
    window_start  timestamp NOT NULL,
    window_end    timestamp NOT NULL,
    value         double precision NOT NULL,
    mean          double precision NOT NULL,
    stddev        double precision NOT NULL,
    z_score       double precision NOT NULL,
    method        text NOT NULL,
    severity      text NOT NULL CHECK (severity IN ('low', 'medium', 'high')),
    PRIMARY KEY (metric, subject, window_start, window_end)
);
COMMENT ON TABLE anomaly_detection_results IS 'What was far from usual: users within their window (method population), hours within the 24 before them (method history).';

CREATE VIEW user_activity AS
SELECT user_id, max(name) AS name, max(region) AS region, date_trunc('hour', window_start) AS hour,
       sum(event_count)::bigint AS event_count, min(window_start) AS active_from, max(window_end) AS active_until
FROM user_activity_summary
WHERE window_end - window_start = interval '5 seconds'
GROUP BY user_id, date_trunc('hour', window_start);
COMMENT ON VIEW user_activity IS 'One row per user and hour, the running one included: from the windows of 5 seconds, so active_from and active_until are known to 5 seconds.';

CREATE TABLE dashboard_metadata (
    dashboard        text NOT NULL,
    panel            text NOT NULL,
    "position"       integer NOT NULL,
    title            text NOT NULL,
    description      text NOT NULL,
    kind             text NOT NULL CHECK (kind IN ('number', 'table', 'time series')),
    unit             text,
    query            text NOT NULL,
    refresh_seconds  integer NOT NULL CHECK (refresh_seconds > 0),
    PRIMARY KEY (dashboard, panel),
    UNIQUE (dashboard, "position")
);
COMMENT ON TABLE dashboard_metadata IS 'What a dashboard shows: one row per panel, with the query to ask this database. Change and add rows as you like.';

INSERT INTO dashboard_metadata VALUES
('real-time', 'events', 1, 'Events a minute', 'Valid events by minute of event time, the last hour.', 'time series', 'events',
 $$SELECT date_trunc('minute', window_start) AS "time", sum(event_count) AS value FROM user_activity_summary
   WHERE window_end - window_start = interval '5 seconds' AND window_start >= (SELECT max(window_start) FROM user_activity_summary) - interval '1 hour'
   GROUP BY 1 ORDER BY 1$$, 5),
('real-time', 'users', 2, 'Active users', 'Who did something in the last five minutes of event time.', 'number', 'users',
 $$SELECT count(DISTINCT user_id) AS value FROM user_activity_summary
   WHERE window_end - window_start = interval '5 seconds' AND window_start >= (SELECT max(window_start) FROM user_activity_summary) - interval '5 minutes'$$, 5),
('real-time', 'top_users', 3, 'Most active users', 'The ten who did most in the last hour.', 'table', NULL,
 $$SELECT user_id, name, region, event_count, active_until FROM user_activity
   WHERE hour = (SELECT max(hour) FROM user_activity) ORDER BY event_count DESC, user_id LIMIT 10$$, 15),
('history', 'hours', 1, 'Hours', 'Events, users and score of each hour of the last week.', 'time series', 'events',
 $$SELECT window_start AS "time", events, users, mean, z_score FROM hourly_metrics
   WHERE window_start >= (SELECT max(window_start) FROM hourly_metrics) - interval '7 days' ORDER BY 1$$, 60),
('history', 'actions', 2, 'What is done', 'Each action by hour, the last day.', 'time series', 'events',
 $$SELECT window_start AS "time", views, clicks, searches, adds_to_cart, removes_from_cart, purchases, logins, logouts FROM hourly_metrics
   WHERE window_start >= (SELECT max(window_start) FROM hourly_metrics) - interval '24 hours' ORDER BY 1$$, 60),
('errors', 'invalid_rate', 1, 'Invalid records', 'Their share by hour, the last week.', 'time series', 'ratio',
 $$SELECT window_start AS "time", invalid_rate AS value, invalid FROM hourly_metrics
   WHERE window_start >= (SELECT max(window_start) FROM hourly_metrics) - interval '7 days' ORDER BY 1$$, 60),
('errors', 'anomalies', 2, 'Anomalies', 'The latest, of users and of hours.', 'table', NULL,
 $$SELECT window_end, metric, subject, value, mean, z_score, severity FROM anomaly_detection_results ORDER BY window_end DESC, abs(z_score) DESC LIMIT 20$$, 15),
('health', 'checks', 1, 'Quality now', 'Each check of the last minute that is over.', 'table', NULL,
 $$SELECT check_name, status, failed_ratio, threshold, rows_failed, rows_checked FROM data_quality_checks
   WHERE window_start = (SELECT max(window_start) FROM data_quality_checks) ORDER BY check_name$$, 15),
('health', 'failed_checks', 2, 'Failed checks', 'How many failed by check and hour, the last day.', 'time series', 'checks',
 $$SELECT date_trunc('hour', window_start) AS "time", check_name, count(*) FILTER (WHERE status = 'failed') AS value FROM data_quality_checks
   WHERE window_start >= (SELECT max(window_start) FROM data_quality_checks) - interval '24 hours' GROUP BY 1, 2 ORDER BY 1, 2$$, 60);
