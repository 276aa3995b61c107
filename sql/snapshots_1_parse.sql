-- Payload text to the state that an event carries itself, as it will be sent: arrays as lists and as JSON text.
-- View given: segment (row, app_id, id, event_type, user_id, created_date, payload, well_formed).
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

-- Amplitude cuts an array over 1,024 characters of JSON text: keep the longest sorted prefix that fits.
-- (Lengths are added up, of no more items than could fit: texts of each prefix would take memory that grows with the
-- square of the array.)
CREATE TEMP MACRO lengths(items) AS list_transform(items[:400], lambda item: length(to_json(item)::VARCHAR) + 1);
CREATE TEMP MACRO cut(items, as_text) AS CASE
    WHEN length(as_text) <= 1024 THEN items
    ELSE list_transform(
        [lengths(items)], lambda each: list_filter(items[:400], lambda item, place: list_sum(each[:place]) + 1 <= 1024)
    )[1]
END;
CREATE TEMP MACRO cut_text(items, as_text) AS CASE
    WHEN length(as_text) <= 1024 THEN as_text
    ELSE to_json(cut(items, as_text))::VARCHAR
END;

-- JSON true and false; anything else is no boolean.
CREATE TEMP MACRO flag(value) AS CASE value::VARCHAR WHEN 'true' THEN true WHEN 'false' THEN false END;

CREATE TEMP TABLE carried_by_event AS
WITH parsed AS (
    SELECT
        row, app_id, id, user_id, created_date, payload,
        starts_with(event_type, 'user.') AS is_user,
        from_json(payload, '{
            "active_entitlements": [{"entitlement_ref_id": "JSON", "sku_ref_id": "JSON"}],
            "devices": [{"id": "JSON", "platform": {"id": "JSON"}}],
            "customer_journey_state": {
                "former_subscriber": "JSON",
                "in_grace_period": "JSON",
                "in_trial_period": "JSON",
                "in_intro_offer_period": "JSON"
            },
            "external_ids": [{"key": "VARCHAR", "value": "JSON"}]
        }') AS p
    FROM segment
    WHERE well_formed AND (starts_with(event_type, 'user.') OR contains(payload, 'external_ids'))
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
                AND p.external_ids IS NOT NULL AND p.customer_journey_state.in_trial_period IS NOT NULL) THEN false
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
            WHEN coalesce(
                p.customer_journey_state.former_subscriber,
                p.customer_journey_state.in_grace_period,
                p.customer_journey_state.in_trial_period,
                p.customer_journey_state.in_intro_offer_period
            ) IS NOT NULL THEN true
            ELSE json_type(payload, '$.customer_journey_state') = 'OBJECT'
        END AS has_journey,
        CASE
            WHEN len(p.active_entitlements) = 0 THEN false
            WHEN len(list_filter(p.active_entitlements, lambda e: e.entitlement_ref_id IS NOT NULL)) > 0 THEN true
            WHEN len(p.active_entitlements) > 0
                THEN list_contains(json_type(payload, '$.active_entitlements[*]'), 'OBJECT')
        END AS has_active_entitlement,
        tidy(list_transform(p.active_entitlements, lambda e: id_text(e.entitlement_ref_id))) AS entitlements,
        tidy(list_transform(p.active_entitlements, lambda e: id_text(e.sku_ref_id))) AS skus,
        tidy(list_transform(p.devices, lambda d: id_text(d.id))) AS device_ids,
        tidy(list_transform(p.devices, lambda d: id_text(d.platform.id))) AS device_platforms,
        flag(p.customer_journey_state.former_subscriber) AS former_subscriber,
        flag(p.customer_journey_state.in_grace_period) AS namiml_in_grace_period,
        flag(p.customer_journey_state.in_trial_period) AS namiml_in_trial_period,
        flag(p.customer_journey_state.in_intro_offer_period) AS namiml_in_intro_offer_period,
        id_text(list_filter(
            p.external_ids, lambda e: e.key = 'external_id' AND id_text(e.value) IS NOT NULL
        )[1].value) AS external_id
    FROM parsed
),
texts AS (
    SELECT
        *,
        to_json(entitlements)::VARCHAR AS entitlements_text,
        to_json(skus)::VARCHAR AS skus_text,
        to_json(device_ids)::VARCHAR AS device_ids_text,
        to_json(device_platforms)::VARCHAR AS device_platforms_text
    FROM arrays
)
SELECT
    row, app_id, id, user_id, created_date, is_user,
    has_entitlements, has_devices, has_journey, has_scalar_group, has_active_entitlement,
    cut(entitlements, entitlements_text) AS namiml_active_entitlements,
    cut(skus, skus_text) AS namiml_active_skus,
    cut(device_ids, device_ids_text) AS namiml_device_ids,
    cut(device_platforms, device_platforms_text) AS namiml_device_platforms,
    cut_text(entitlements, entitlements_text) AS entitlements_text,
    cut_text(skus, skus_text) AS skus_text,
    cut_text(device_ids, device_ids_text) AS device_ids_text,
    cut_text(device_platforms, device_platforms_text) AS device_platforms_text,
    former_subscriber, namiml_in_grace_period, namiml_in_trial_period, namiml_in_intro_offer_period,
    replace(stripped(external_id), chr(0), '') AS external_id,
    (CASE WHEN length(entitlements_text) > 1024 THEN 1 ELSE 0 END
        + CASE WHEN length(skus_text) > 1024 THEN 1 ELSE 0 END
        + CASE WHEN length(device_ids_text) > 1024 THEN 1 ELSE 0 END
        + CASE WHEN length(device_platforms_text) > 1024 THEN 1 ELSE 0 END) AS truncated_arrays
FROM texts;

-- The users of whom not every event tells all.
CREATE TEMP TABLE incomplete AS
SELECT DISTINCT app_id, user_id
FROM carried_by_event
WHERE is_user AND NOT (has_entitlements AND has_devices AND has_journey);
