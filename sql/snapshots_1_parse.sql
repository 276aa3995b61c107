-- Payload text to the state that an event carries itself, as it will be sent: arrays as lists and as JSON text.
-- Macros alone; carried(source) reads a relation with row, app_id, id, event_type, user_id, created_date, payload and
-- well_formed, and is what other files call carried_by_event.
-- What stands in double braces is made of contract.PROPERTIES by stages/snapshot_sql.py.

-- An id is a text, or a number as it is written; anything else is none.
CREATE TEMP MACRO id_text(value) AS CASE ascii(value::VARCHAR)
    WHEN 34 THEN value ->> '$'
    WHEN 45 THEN value::VARCHAR
    ELSE CASE WHEN ascii(value::VARCHAR) BETWEEN 48 AND 57 THEN value::VARCHAR END
END;

-- Distinct, sorted by code point, nulls dropped; most have one item.
CREATE TEMP MACRO tidy(items) AS CASE
    WHEN len(items) = 1 AND items[1] IS NOT NULL THEN items
    ELSE list_sort(list_distinct(items))
END;

-- Amplitude cuts an array over so many characters of JSON text: keep the longest sorted prefix that fits. An item takes
-- three characters at least (quotes and a comma), so only the first few can be in it; and their lengths are added, not
-- their texts put together: a payload with many or long items costs no more than its own size. The lengths are a column
-- of their own, since DuckDB would compute what a macro puts into a lambda once for each item.
CREATE TEMP MACRO lengths_of(items, as_text) AS CASE
    WHEN length(as_text) > {{ array_characters }} THEN list_transform(
        items[:({{ array_characters }} - 1) // 3], lambda item: length(to_json(item)::VARCHAR) + 1
    )
END;
CREATE TEMP MACRO cut(items, lengths) AS CASE
    WHEN lengths IS NULL THEN items
    ELSE items[:len(list_filter(
        lengths, lambda size, position: list_sum(lengths[:position]) < {{ array_characters }}
    ))]
END;
CREATE TEMP MACRO text_of(kept, as_text) AS CASE
    WHEN length(as_text) <= {{ array_characters }} THEN as_text
    ELSE to_json(kept)::VARCHAR
END;

-- JSON true and false; anything else is no boolean.
CREATE TEMP MACRO flag(value) AS CASE value::VARCHAR WHEN 'true' THEN true WHEN 'false' THEN false END;

CREATE TEMP MACRO carried(source) AS TABLE
WITH parsed AS (
    SELECT
        row, app_id, id, user_id, created_date, payload{{ also_parsed }},
        carries_state(event_type) AS is_user,
        from_json(payload, {{ payload_structure }}) AS p
    FROM query_table(source)
    WHERE well_formed AND (carries_state(event_type) OR contains(payload, 'external_ids'))
),
arrays AS (
    SELECT
        row, app_id, id, user_id, created_date, is_user,
        p.active_entitlements IS NOT NULL AS has_entitlements,
        p.devices IS NOT NULL AS has_devices,
        -- A text, number or boolean where Nami has an array or object is an event property. Few events have one: where
        -- not all are what they should be the text is looked at, and only where that looks odd, or has escapes, the JSON.
        -- (CASE, since AND would compute all of it for every event.)
        CASE
            WHEN NOT is_user OR (p.active_entitlements IS NOT NULL AND p.devices IS NOT NULL
                AND p.external_ids IS NOT NULL AND {{ any_journey }} IS NOT NULL) THEN false
            WHEN contains(payload, chr(92))
                OR regexp_matches(payload, '"active_entitlements"\s*:\s*[^\[{n\s]')
                OR regexp_matches(payload, '"customer_journey_state"\s*:\s*[^\[{n\s]')
                OR regexp_matches(payload, '"devices"\s*:\s*[^\[{n\s]')
                OR regexp_matches(payload, '"external_ids"\s*:\s*[^\[{n\s]')
                THEN len(list_filter(
                    json_type(
                        payload, ['$.active_entitlements', '$.customer_journey_state', '$.devices', '$.external_ids']
                    ),
                    lambda kind: kind IS NOT NULL AND kind NOT IN ('ARRAY', 'OBJECT', 'NULL')
                )) > 0
            ELSE false
        END AS has_scalar_group,
        -- The transform makes an object of NULLs out of what is none, so where nothing was found the type decides.
        CASE
            WHEN p.customer_journey_state IS NULL THEN false
            WHEN {{ any_journey }} IS NOT NULL THEN true
            ELSE json_type(payload, '$.customer_journey_state') = 'OBJECT'
        END AS has_journey,
        -- Whatever its ids are, an object among the entitlements is an active one.
        CASE
            WHEN len(p.active_entitlements) = 0 THEN false
            WHEN len(list_filter(p.active_entitlements, lambda item: {{ any_entitlement }} IS NOT NULL)) > 0 THEN true
            WHEN len(p.active_entitlements) > 0
                THEN list_contains(json_type(payload, '$.active_entitlements[*]'), 'OBJECT')
        END AS has_active_entitlement,
        {{ values }},
        -- A blank one is none: apps log out with it.
        list_filter(
            list_transform(p.external_ids, lambda e: CASE WHEN e.key = 'external_id' THEN id_text(e.value) END),
            lambda text: stripped(replace(text, chr(0), '')) <> ''
        )[1] AS external_id{{ raised }}
    FROM {{ parsed }}
),
texts AS (
    SELECT *, {{ texts }} FROM arrays
),
lengths AS (
    SELECT *, {{ lengths }} FROM texts
),
cuts AS (
    SELECT * REPLACE ({{ cuts }}), {{ truncated }} AS truncated_arrays FROM lengths
)
SELECT
    row, app_id, id, user_id, created_date, is_user,
    has_entitlements, has_devices, has_journey, has_scalar_group,
    {{ carried_entitlements }} AS entitlements,
    {{ carried_devices }} AS devices,
    {{ carried_journey }} AS journey,
    stripped(replace(external_id, chr(0), '')) AS external_id,
    truncated_arrays{{ also_raised }}
FROM cuts;

-- The same of events whose payload cannot be read: they tell nothing of their user.
CREATE TEMP MACRO carried_nothing(source) AS TABLE
SELECT
    row, app_id, id, user_id, created_date, true AS is_user, false AS has_entitlements, false AS has_devices,
    false AS has_journey, false AS has_scalar_group, 0 AS truncated_arrays
FROM query_table(source)
WHERE carries_state(event_type);
