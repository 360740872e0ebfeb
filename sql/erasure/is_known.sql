-- is_known: whether a person is a user, or has initiated anything.
--
-- param   user_id  uuid  the person
-- result  one  known boolean
-- index   users_pkey, aibridge_interceptions_initiator_started_at_idx
SELECT
    EXISTS (
        SELECT
        FROM users
        WHERE id = :user_id
    )
    OR EXISTS (
        SELECT
        FROM aibridge_interceptions
        WHERE initiator_id = :user_id
            AND ended_at IS NOT NULL
    )
    OR EXISTS (
        SELECT
        FROM aibridge_interceptions
        WHERE initiator_id = :user_id
            AND ended_at IS NULL
    ) AS known
