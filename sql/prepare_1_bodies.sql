-- Everything of an Amplitude event that is the same for all integrations, as JSON text behind its event_type and user_id.
-- Given: properties (row, id, event_type, created_date, properties; device_id, amount, currency, quantity, sku,
-- purchase_env as JSON texts), snapshots (row, user_properties).
CREATE TEMP MACRO is_text(value) AS starts_with(value, '"');
CREATE TEMP MACRO is_number(value) AS regexp_full_match(value, '-?[0-9].*');
-- A number that no double holds is none that can be sent.
CREATE TEMP MACRO is_amount(value) AS is_number(value) AND coalesce(isfinite(try_cast(value AS DOUBLE)), false);
CREATE TEMP MACRO as_text(value) AS CASE
    WHEN is_text(value) THEN CASE WHEN contains(value, chr(92)) THEN value ->> '$' ELSE value[2:-2] END
    WHEN is_number(value) THEN value
END;
-- Rounded down, before 1970 too.
CREATE TEMP MACRO whole_ms(moment) AS floor(epoch_us(moment)::DECIMAL(38, 0) / 1000)::BIGINT;

CREATE TEMP TABLE bodies AS
WITH events AS (
    SELECT
        * REPLACE (CASE WHEN stripped(device_id) <> '' THEN device_id END AS device_id),
        event_type = 'device.transaction'
            AND is_amount(amount)
            AND purchase_env IS DISTINCT FROM '"sandbox"' AS is_revenue
    FROM (
        SELECT * REPLACE (CASE WHEN starts_with(event_type, 'device.') THEN as_text(device_id) END AS device_id)
        FROM properties
    )
)
SELECT
    row, device_id,
    concat(
        ',"time":', whole_ms(e.created_date),
        ',"insert_id":', to_json(e.id),
        ',"device_id":' || to_json(device_id),
        ',"event_properties":{',
        concat_ws(
            ',',
            nullif(properties, ''),
            '"namiml_event_category":' || to_json(split_part(e.event_type, '.', 1)),
            CASE WHEN split_part(e.event_type, '.', 3) <> ''
                THEN '"namiml_event_subcategory1":' || to_json(split_part(e.event_type, '.', 2))
            END
        ),
        '}',
        CASE WHEN is_revenue THEN concat(
            ',"price":', amount,
            ',"quantity":',
            CASE WHEN regexp_full_match(as_text(quantity), '-?[0-9]{1,15}') THEN as_text(quantity)::BIGINT ELSE 1 END,
            CASE WHEN is_text(sku) THEN ',"productId":' || sku END,
            ',"revenueType":"purchase"',
            CASE WHEN is_text(currency) THEN ',"currency":' || currency END
        ) END,
        ',"user_properties":' || n.user_properties,
        '}'
    ) AS rest
FROM events e LEFT JOIN snapshots n USING (row);
