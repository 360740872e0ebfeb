-- find_foreign_interception: an interception that the demo did not make: its initiator is none of the demo's users.
--
-- param   user_ids  uuid[]  the users of the demo
-- result  maybe  id uuid
-- index   none
SELECT id
FROM aibridge_interceptions
WHERE NOT EXISTS (
    SELECT
    FROM unnest(:user_ids::uuid[]) AS demo_user (id)
    WHERE demo_user.id = aibridge_interceptions.initiator_id
)
-- Any one will do: a total order would read the whole table to choose.
LIMIT 1
