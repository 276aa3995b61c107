-- Rows at or after their app's frontier, with what the ledger knows an id by; and what cannot be known by an id.
-- Views given: keys (app_id, id, ingested_at, rid = number of the row), positions (app_id, frontier in µs or NULL for
-- the beginning).
CREATE TEMP VIEW reached AS
SELECT
    k.app_id,
    -- What PostgreSQL can hold in no text goes, here and in the rows.
    replace(k.id, chr(0), '') AS id,
    k.rid,
    epoch_us(k.ingested_at) AS ingested_at
FROM (
    SELECT * FROM keys WHERE ingested_at >= (
        SELECT CASE WHEN bool_or(frontier IS NULL) THEN '-infinity'::TIMESTAMPTZ ELSE make_timestamptz(min(frontier)) END
        FROM positions
    )
) k JOIN positions p USING (app_id)
WHERE p.frontier IS NULL OR epoch_us(k.ingested_at) >= p.frontier;

-- The first row of each id, or the last.
CREATE TEMP TABLE fresh AS
SELECT high, low, arg_{copy}(rid, ingested_at) AS rid, {copy}(ingested_at) AS ingested_at
FROM (SELECT {key_columns}, rid, ingested_at FROM reached WHERE strlen(id) BETWEEN 1 AND {max_id_bytes})
GROUP BY high, low;

CREATE TEMP TABLE nameless AS
SELECT app_id, CASE WHEN strlen(id) > {max_id_bytes} THEN 'long_id' ELSE 'no_id' END AS reason, ingested_at,
    concat('ingested_at ', make_timestamptz(ingested_at), CASE WHEN id <> '' THEN concat(', id ', id[:60], '…') END)
        AS example
FROM reached
WHERE id IS NULL OR strlen(id) NOT BETWEEN 1 AND {max_id_bytes};
