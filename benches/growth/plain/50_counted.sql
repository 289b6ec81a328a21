INSERT INTO lake.counted (window_start, window_end, user_id, event_count)
SELECT * FROM counted WHERE window_end <= current_watermark();
