-- Everything of an Amplitude event that is the same for all integrations with the same settings for its content, as
-- JSON text behind its event_type and user_id.
-- Given: properties (row, id, event_type, created_date, properties; device_id, amount, currency, quantity, sku,
-- purchase_env, event_platform as JSON texts), snapshots (row, user_properties), the macros of prepare_0_macros, those
-- of the contract (carries_device, is_revenue_type, is_reserved), and those of the settings (environment_of,
-- shown_device, shown_user_properties, price_of, gross_of).
WITH events AS (
    SELECT
        *,
        -- CASE, as AND would compute both of all events.
        CASE WHEN is_revenue_type(event_type) AND is_amount(amount)
            THEN lower(stripped(as_text(purchase_env))) IS DISTINCT FROM 'sandbox'
            ELSE false
        END AS is_revenue,
        -- Posted, a reserved id would refuse the whole request.
        CASE WHEN device_id IS NOT NULL THEN is_reserved(stripped(device_id)) ELSE false END AS has_reserved_device
    FROM (
        SELECT * REPLACE (CASE WHEN stripped(device_id) <> '' THEN device_id END AS device_id)
        FROM (
            SELECT * REPLACE (CASE WHEN carries_device(event_type) THEN as_text(device_id) END AS device_id)
            FROM properties
        )
    )
),
shown AS (
    SELECT * REPLACE (CASE WHEN NOT has_reserved_device THEN shown_device(device_id) END AS device_id) FROM events
)
SELECT
    row, device_id, has_reserved_device, environment_of(purchase_env) AS environment,
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
            END,
            CASE WHEN is_revenue THEN '"namiml_gross_amount":' || gross_of(amount) END
        ),
        '}',
        CASE WHEN is_revenue THEN concat(
            ',"price":', price_of(amount, event_platform),
            ',"quantity":', as_quantity(quantity),
            CASE WHEN is_text(sku) THEN ',"productId":' || sku END,
            ',"revenueType":"purchase"',
            CASE WHEN is_text(currency) THEN ',"currency":' || currency END
        ) END,
        ',"user_properties":' || shown_user_properties(n.user_properties),
        '}'
    ) AS rest
FROM shown e LEFT JOIN snapshots n USING (row)
