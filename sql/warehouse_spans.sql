-- Where in the warehouse the wanted rows lie: spans of ingested_at with few others between, by part of the reading.
-- Tables given: warehouse_keys (part, app_id, ingested_at, rid), warehouse_wanted (part, app_id, ingested_at, rid);
-- variable gap: so many rows that are not wanted make a new span.
WITH passed AS (
    SELECT
        part,
        app_id,
        ingested_at,
        is_wanted,
        count(*) FILTER (NOT is_wanted) OVER (PARTITION BY part ORDER BY ingested_at) AS others
    FROM (
        SELECT part, app_id, ingested_at, rid IN (SELECT rid FROM warehouse_wanted) AS is_wanted
        FROM warehouse_keys
    )
),
steps AS (
    SELECT part, app_id, ingested_at,
        others - lag(others, 1, others) OVER (PARTITION BY part ORDER BY ingested_at) >= getvariable('gap') AS is_new
    FROM passed
    WHERE is_wanted
),
spans AS (
    SELECT part, app_id, ingested_at,
        count(*) FILTER (is_new) OVER (PARTITION BY part ORDER BY ingested_at) AS span
    FROM steps
)
SELECT part, epoch_us(min(ingested_at)), epoch_us(max(ingested_at)), list(DISTINCT app_id)
FROM spans
GROUP BY part, span
ORDER BY 2, 1;
