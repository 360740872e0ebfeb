-- has_foreign_interceptions: whether there is an interception whose initiator is none of these users.
--
-- param   user_ids  uuid[]  the users of the demo
-- result  one  found boolean
-- index   none
SELECT EXISTS(
    SELECT
    FROM aibridge_interceptions
    WHERE NOT EXISTS (
        SELECT
        FROM unnest(:user_ids::uuid[]) AS demo_user (id)
        WHERE demo_user.id = aibridge_interceptions.initiator_id
    )
) AS found
