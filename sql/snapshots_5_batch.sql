-- What an enrichment is asked about: the events that have a snapshot, in the order of the file.
-- Tables given: snapshots, segment, carried_by_event.
SELECT
    s.row, s.app_id, s.id, s.user_id, c.external_id, g.event_type, s.created_date, {{ batch_columns }}
FROM (SELECT row, app_id, id, user_id, created_date, {{ columns }} FROM snapshots) s
JOIN segment g USING (row)
JOIN carried_by_event c USING (row)
ORDER BY s.row;
