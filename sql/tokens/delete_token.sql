-- delete_token: revoke a token.
--
-- param   token_id  text  the first half of the token
-- result  maybe  id text
-- index   api_keys_pkey
DELETE FROM api_keys
WHERE id = :token_id
RETURNING id
