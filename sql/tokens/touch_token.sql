-- touch_token: note when a token was last used.
--
-- param   token_id  text         the first half of the token
-- param   used_at   timestamptz  when it was used
-- result  none
-- index   api_keys_pkey
UPDATE api_keys
SET last_used = :used_at
WHERE id = :token_id AND last_used < :used_at
