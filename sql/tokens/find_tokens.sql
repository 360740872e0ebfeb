-- find_tokens: tokens by their ids, each with the user it signs in.
--
-- param   token_ids  text[]  the first halves of the tokens
-- result  many  id text, hashed_secret bytea, expires_at timestamptz, last_used timestamptz, user_id uuid, status text, deleted boolean, roles text[]
-- index   api_keys_pkey
SELECT
    api_keys.id,
    api_keys.hashed_secret,
    api_keys.expires_at,
    api_keys.last_used,
    users.id AS user_id,
    users.status::text AS status,
    users.deleted,
    users.rbac_roles AS roles
FROM api_keys
INNER JOIN users ON api_keys.user_id = users.id
WHERE api_keys.id = ANY(:token_ids)
