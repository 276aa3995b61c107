-- All that events of this segment may take what they lack from: one row per earlier event that has a group.
-- Given: known, late; history (rows of snapshot files, of the users of late among others).
CREATE TEMP VIEW earlier AS
SELECT NULL::BIGINT AS row, * FROM known
UNION ALL BY NAME
SELECT
    app_id, user_id, created_date, id, has_entitlements, has_devices, has_journey,
    {{ filed_entitlements }} AS entitlements,
    {{ filed_devices }} AS devices,
    {{ filed_journey }} AS journey
FROM history SEMI JOIN late USING (app_id, user_id);
