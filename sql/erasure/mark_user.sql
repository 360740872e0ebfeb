-- mark_user: note that a person is erased, up to now or to the latest start of what they initiated, and tell up to when.
--
-- param   user_id  uuid         the person
-- param   now      timestamptz  now
-- result  one  erased_until timestamptz
-- index   aibridge_interceptions_initiator_started_at_idx
INSERT INTO bridgelog_erased_users AS erased (user_id, erased_until)
SELECT
    :user_id,
    greatest(
        :now,
        (
            SELECT max(started_at)
            FROM aibridge_interceptions
            WHERE ended_at IS NOT NULL
                AND initiator_id = :user_id
        ),
        (
            SELECT max(started_at)
            FROM aibridge_interceptions
            WHERE ended_at IS NULL
                AND initiator_id = :user_id
        )
    ) AS erased_until
ON CONFLICT (user_id) DO UPDATE
SET erased_until = greatest(erased.erased_until, excluded.erased_until)
RETURNING erased_until
