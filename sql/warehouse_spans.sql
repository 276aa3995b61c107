-- Where in the warehouse the wanted rows lie: spans of ingested_at with few others between, by part of the reading.
-- Tables given: warehouse_keys (part, app_id, ingested_at, rid), warehouse_wanted (part, app_id, ingested_at, rid);
-- variable gap: so many rows that are not wanted make a new span.
-- Counted by moment first: a bulk load gives very many rows one moment, and a window over rows looks at each of them for
-- each of them.
WITH moments AS (
    SELECT
        part,
        ingested_at,
        count(*) FILTER (is_wanted) AS wanted,
        count(*) FILTER (NOT is_wanted) AS others
    FROM (
        SELECT part, ingested_at, rid IN (SELECT rid FROM warehouse_wanted) AS is_wanted
        FROM warehouse_keys
    )
    GROUP BY part, ingested_at
),
passed AS (
    SELECT
        part,
        ingested_at,
        wanted,
        sum(others) OVER (PARTITION BY part ORDER BY ingested_at ROWS UNBOUNDED PRECEDING) AS others
    FROM moments
),
steps AS (
    SELECT part, ingested_at,
        others - lag(others, 1, others) OVER (PARTITION BY part ORDER BY ingested_at) >= getvariable('gap') AS is_new
    FROM passed
    WHERE wanted > 0
),
spans AS (
    SELECT part, ingested_at,
        count(*) FILTER (is_new) OVER (PARTITION BY part ORDER BY ingested_at ROWS UNBOUNDED PRECEDING) AS span
    FROM steps
)
SELECT part, epoch_us(min(ingested_at)), epoch_us(max(ingested_at)), list(DISTINCT app_id)
FROM warehouse_wanted JOIN spans USING (part, ingested_at)
GROUP BY part, span
ORDER BY 2, 1;
