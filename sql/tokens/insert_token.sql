-- insert_token: a new token of a user.
--
-- param   token_id       text         the first half of the token
-- param   hashed_secret  bytea        the SHA-256 of its second half
-- param   user_id        uuid         whose token it is
-- param   expires_at     timestamptz  when it stops signing in
-- param   created_at     timestamptz  when it was made
-- result  none
-- index   none
INSERT INTO api_keys (id, hashed_secret, user_id, expires_at, last_used, created_at, updated_at, token_name)
VALUES (:token_id, :hashed_secret, :user_id, :expires_at, :created_at, :created_at, :created_at, '')
