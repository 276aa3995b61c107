-- Rows at or after their app's frontier, the first of each id, with what the ledger knows an id by.
-- Views given: keys (app_id, id, ingested_at, rid = number of the row), positions (app_id, frontier in µs or NULL for
-- the beginning).
CREATE TEMP TABLE fresh AS
WITH candidates AS (
    -- What PostgreSQL can hold in no text goes, here and in the rows.
    SELECT app_id, replace(id, chr(0), '') AS id, rid, epoch_us(ingested_at) AS ingested_at
    FROM keys
    SEMI JOIN positions USING (app_id)
    WHERE ingested_at >= (
        SELECT CASE WHEN bool_or(frontier IS NULL) THEN '-infinity'::TIMESTAMPTZ ELSE make_timestamptz(min(frontier)) END
        FROM positions
      )
      AND id IS NOT NULL
),
reached AS (
    SELECT candidates.*
    FROM candidates JOIN positions USING (app_id)
    WHERE positions.frontier IS NULL OR candidates.ingested_at >= positions.frontier
)
SELECT high, low, arg_min(rid, ingested_at) AS rid, min(ingested_at) AS ingested_at
FROM (SELECT {key_columns}, rid, ingested_at FROM reached)
GROUP BY high, low;
