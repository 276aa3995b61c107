-- What a backfill does with each event of its window in one file.
-- Views given: window_rows (row, id, event_type, user_id, created_date, ingested_at); known (id, outcome: pending, dead,
-- repeat, stored or skipped, identity that it was sent with); bounds (start_from, start_of_new, frontier, horizon: in µs or NULL); earlier (since, until,
-- is_by_created: windows of backfills whose receipts are gone).
CREATE TEMP TABLE choice AS
SELECT
    w.row, w.id, w.event_type, w.user_id, k.identity,
    CASE
        WHEN k.outcome = 'pending' THEN 'left_to_live'
        WHEN k.outcome = 'dead' THEN 'dead_letter'
        WHEN k.outcome IN ('repeat', 'stored') THEN k.outcome
        -- Live reads from the frontier on, and each integration's events from its start on.
        WHEN (b.start_of_new IS NULL OR epoch_us(w.ingested_at) >= b.start_of_new)
            AND (b.frontier IS NULL OR epoch_us(w.ingested_at) >= b.frontier) THEN 'left_to_live'
        WHEN k.outcome = 'skipped' THEN 'new'
        -- What was sent before the horizon left no trace.
        WHEN EXISTS (
            FROM earlier e
            WHERE epoch_us(CASE WHEN e.is_by_created THEN w.created_date ELSE w.ingested_at END) >= e.since
                AND epoch_us(CASE WHEN e.is_by_created THEN w.created_date ELSE w.ingested_at END) < e.until
        ) THEN 'unknown'
        WHEN b.start_from IS NOT NULL AND epoch_us(w.ingested_at) < b.start_from THEN 'new'
        WHEN epoch_us(w.ingested_at) < b.horizon THEN 'unknown'
        ELSE 'new'
    END AS class
FROM window_rows w
LEFT JOIN known k ON k.id = w.id
CROSS JOIN bounds b;
