-- insert_user: a new user; refused by users_username_lower_idx or users_pkey where the name or the id is taken.
--
-- param   user_id     uuid         the new user's id
-- param   username    text         the name to sign in as
-- param   name        text         the person's name
-- param   roles       text[]       owner, auditor, recorder; none is a member
-- param   created_at  timestamptz  now
-- result  none
-- index   none
INSERT INTO users (id, username, name, rbac_roles, created_at, updated_at)
VALUES (:user_id, :username, :name, :roles, :created_at, :created_at)
