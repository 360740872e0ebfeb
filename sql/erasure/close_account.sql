-- close_account: take a user's roles and their right to sign in.
--
-- param   user_id     uuid         the user
-- param   updated_at  timestamptz  now
-- result  none
-- index   users_pkey
UPDATE users
SET status = 'suspended', rbac_roles = '{}', updated_at = :updated_at
WHERE id = :user_id
