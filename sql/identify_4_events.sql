-- The events of the users that were chosen, in the place of the bodies. Given: choice, decided, bodies, whole_ms.
DELETE FROM decided WHERE row NOT IN (SELECT row FROM choice WHERE class = 'new');
UPDATE decided SET id = c.id FROM choice c WHERE c.row = decided.row;
UPDATE bodies SET rest = concat(
    ',"time":', whole_ms(make_timestamptz(c.as_of_date)),
    ',"insert_id":', to_json(c.id),
    ',"user_properties":{"$set":', c.properties,
    '}}'
)
FROM choice c WHERE c.row = bodies.row AND c.class = 'new';
