-- Words of the other files of stage 3. Each gets a JSON value as its text.
CREATE TEMP MACRO is_text(value) AS starts_with(value, '"');
CREATE TEMP MACRO is_number(value) AS regexp_full_match(value, '-?[0-9].*');
-- A number that no double holds is none that can be sent.
CREATE TEMP MACRO is_amount(value) AS is_number(value) AND coalesce(isfinite(try_cast(value AS DOUBLE)), false);
CREATE TEMP MACRO as_text(value) AS CASE
    WHEN is_text(value) THEN CASE WHEN contains(value, chr(92)) THEN value ->> '$' ELSE value[2:-2] END
    WHEN is_number(value) THEN value
END;

-- A whole number of at most 15 digits, however it is written; anything else counts as 1.
CREATE TEMP MACRO as_quantity(value) AS CASE
    WHEN regexp_full_match(as_text(value), '-?[0-9]{1,15}') THEN as_text(value)::BIGINT
    WHEN regexp_full_match(as_text(value), '-?[0-9]{1,15}[.]0+') THEN split_part(as_text(value), '.', 1)::BIGINT
    ELSE 1
END;

-- What leaves in place of a value that is to be hashed: of a text its characters are hashed, of anything else its JSON.
CREATE TEMP MACRO hash_of(clear) AS sha256(getvariable('salt') || clear);
CREATE TEMP MACRO hashed(value) AS '"' || hash_of(CASE WHEN is_text(value) THEN as_text(value) ELSE value END) || '"';

-- Rounded down, before 1970 too.
CREATE TEMP MACRO whole_ms(moment) AS floor(epoch_us(moment)::DECIMAL(38, 0) / 1000)::BIGINT;

-- Who a Nami user is in Amplitude, by the settings of the integration.
CREATE TEMP MACRO amplitude_user_of(kind, external_id, anonymous, user_id) AS CASE
    WHEN kind = 'nami_user_id' THEN stripped(user_id)
    WHEN external_id IS NOT NULL THEN external_id
    WHEN anonymous = 'nami_user_id' THEN stripped(user_id)
END;
