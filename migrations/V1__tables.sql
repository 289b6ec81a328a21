-- Tables of the shipped project. All timestamps are UTC, without a zone, unless the type says otherwise.

CREATE TABLE users (
    user_id     bigint PRIMARY KEY,
    name        text,
    email       text,
    region      text,
    created_at  timestamptz
);
COMMENT ON TABLE users IS 'One row per user: joined to the activity summary for name and region. Filled by you, read by the pipeline.';

CREATE TABLE user_events (
    user_id       bigint NOT NULL,
    product_id    bigint,
    action        text NOT NULL,
    "timestamp"   timestamp NOT NULL,
    device_id     text,
    device_type   text,
    location      text,
    user_segment  text,
    ip_address    text,
    topic         text,
    "partition"   integer,
    "offset"      bigint,
    CONSTRAINT user_events_key UNIQUE (user_id, "timestamp", action, device_id)
);
COMMENT ON TABLE user_events IS 'One row per valid event. The same event sent twice is kept once.';
COMMENT ON COLUMN user_events."timestamp" IS 'When the event happened: event time, UTC.';
COMMENT ON COLUMN user_events.topic IS 'With partition and offset: the Kafka record it came from, by which the table can be recounted.';

CREATE TABLE user_activity_summary (
    window_start  timestamp NOT NULL,
    window_end    timestamp NOT NULL,
    user_id       bigint NOT NULL,
    event_count   bigint NOT NULL,
    name          text,
    region        text,
    PRIMARY KEY (window_start, window_end, user_id)
) WITH (fillfactor = 50);
COMMENT ON TABLE user_activity_summary IS 'One row per window and user: events counted so far. Windows of 5 seconds and of 1 minute share the table; window_end - window_start tells them apart. Pages are half filled at first: a row that is brought up to date stays on its page, and its index entry is left alone.';

CREATE TABLE anomalous_events (
    user_id       bigint NOT NULL,
    window_start  timestamp NOT NULL,
    window_end    timestamp NOT NULL,
    event_count   bigint NOT NULL,
    z_score       double precision NOT NULL,
    mean          double precision NOT NULL,
    stddev        double precision NOT NULL,
    severity      text NOT NULL CHECK (severity IN ('low', 'medium', 'high')),
    CONSTRAINT anomalous_events_key UNIQUE (user_id, window_start, window_end)
);
COMMENT ON TABLE anomalous_events IS 'One row per user who was far more active in a closed window than all users of it.';
COMMENT ON COLUMN anomalous_events.z_score IS '(event_count - mean) / stddev, over all users of the window.';
COMMENT ON COLUMN anomalous_events.stddev IS 'Of the population, not of a sample.';
