-- What segments hold, by file, app and event type; times in µs since the epoch. View given: segments (with filename).
SELECT
    filename,
    app_id,
    event_type,
    count(*),
    count(*) FILTER (NOT well_formed),
    count(*) FILTER (problem = 'half_characters'),
    epoch_us(min(ingested_at)),
    epoch_us(max(ingested_at)),
    epoch_us(min(created_date)),
    epoch_us(max(created_date))
FROM segments
GROUP BY ALL;
