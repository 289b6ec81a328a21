-- Which records are valid. An invalid record is a row like any other: it gets a reason, and goes where you INSERT it.

-- One row per record; dq_reason is NULL if it is valid, else *all* the rules it breaks, not only the first. A record
-- that did not decode has no fields to look at: its reason is why it did not decode.
-- To add a rule, add a CASE: it gives a text when the rule is broken and NULL when it is kept.
CREATE VIEW checked AS
SELECT *,
  CASE WHEN _error IS NOT NULL THEN _error
  ELSE nullif(concat_ws('; ',
    CASE WHEN user_id IS NULL     THEN 'user_id is missing'
         WHEN user_id <= 0        THEN 'user_id is not positive' END,
    CASE WHEN action IS NULL      THEN 'action is missing'
         WHEN action NOT IN ('view', 'click', 'search', 'add_to_cart', 'remove_from_cart', 'purchase', 'login', 'logout')
                                  THEN 'action is not one of ours' END,
    CASE WHEN "timestamp" IS NULL THEN 'timestamp is missing' END,
    CASE WHEN device_id IS NULL   THEN 'device_id is missing' END   -- part of the event's key, as are those above
  ), '') END AS dq_reason
FROM kafka.user_events;

CREATE VIEW valid_events AS
SELECT user_id, product_id, action, "timestamp", device_id, device_type, location, user_segment, ip_address,
       _topic AS topic, _partition AS "partition", _offset AS "offset"
FROM checked
WHERE dq_reason IS NULL;

-- Columns that the INSERT does not name are NULL.
INSERT INTO kafka.dead_letter_topic (dq_reason, error, stage, raw, payload, topic, "partition", "offset")
SELECT dq_reason, _error, 'validation', _raw, TRY_CAST(_raw AS VARCHAR) AS payload, _topic, _partition, _offset
FROM checked
WHERE dq_reason IS NOT NULL;

INSERT INTO db.user_events SELECT * FROM valid_events;

INSERT INTO lake.user_events SELECT *, CAST("timestamp" AS DATE) AS event_date FROM valid_events;
