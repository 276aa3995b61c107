-- What a segment holds, by app and event type; times in µs since the epoch. View given: segment.
SELECT
    app_id,
    event_type,
    count(*),
    count(*) FILTER (NOT well_formed),
    epoch_us(min(ingested_at)),
    epoch_us(max(ingested_at)),
    epoch_us(min(created_date)),
    epoch_us(max(created_date))
FROM segment
GROUP BY app_id, event_type;
