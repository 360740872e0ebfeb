-- delete_tokens: revoke all tokens of a user.
--
-- param   user_id  uuid  the user
-- result  many  id text
-- index   api_keys_user_id_idx
DELETE FROM api_keys
WHERE user_id = :user_id
RETURNING id
