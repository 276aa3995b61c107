-- Up to which event each Amplitude user has been given its state, once this outbox is posted. Given: decided, history.
SELECT
    integration_id, amplitude_user_id AS user_id, epoch_us(newest.at) AS as_of_date, newest.id AS as_of_event
FROM (
    SELECT integration_id, amplitude_user_id, max({'at': created_date, 'id': id}) AS newest
    FROM decided d ANTI JOIN history h ON h.number = d.rowid
    WHERE state = 'send' AND is_user AND amplitude_user_id IS NOT NULL
    GROUP BY integration_id, amplitude_user_id
)
ORDER BY 1, 2;
