-- What a search or a dashboard asks for, in Elasticsearch: the anomalies, and beside them what is usual.

INSERT INTO es.anomalies
SELECT 'anomaly' AS "type", window_start, window_end, user_id, event_count, mean, stddev, z_score, severity FROM anomalies;

-- One document for each window that a batch closes. Mean and deviation are those of the window, the same in all its rows.
CREATE VIEW summaries AS
SELECT window_start, window_end, mean, stddev, count(*) AS users, sum(event_count) AS events,
       count(*) FILTER (WHERE is_anomaly) AS anomalies
FROM judged
GROUP BY window_start, window_end, mean, stddev;

INSERT INTO es.summaries
SELECT 'summary' AS "type", window_start, window_end, users, events, mean, stddev, CAST(${Z_THRESHOLD:-2.0} AS DOUBLE), anomalies
FROM summaries;
