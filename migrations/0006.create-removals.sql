-- transactional: false
--
-- What retention and erasure have removed, so that what is sent again is still known as a repeat and brings nothing back:
-- an instant for all, and one for each person who was erased. No row for each record: an empty text that is older than the
-- instant counts as removed. And the indexes by which both find what is due. They are built while others write, hence outside
-- a transaction; a run that was interrupted is taken up by the next one.

CREATE TABLE IF NOT EXISTS bridgelog_content_removal (
    singleton boolean NOT NULL DEFAULT TRUE,
    removed_before timestamptz NOT NULL,
    CONSTRAINT bridgelog_content_removal_pkey PRIMARY KEY (singleton),
    CONSTRAINT bridgelog_content_removal_one_row CHECK (singleton)
);

INSERT INTO bridgelog_content_removal (removed_before) VALUES ('-infinity') ON CONFLICT DO NOTHING;

-- Whoever is in it was erased: of what they initiated up to erased_until, counts and names of models, clients and tools alone
-- are kept. Like the records that it speaks of, a row outlives its user.
CREATE TABLE IF NOT EXISTS bridgelog_erased_users (
    user_id uuid NOT NULL,
    erased_until timestamptz NOT NULL,
    CONSTRAINT bridgelog_erased_users_pkey PRIMARY KEY (user_id)
);

CREATE OR REPLACE VIEW bridgelog_erased_interceptions AS
SELECT aibridge_interceptions.id
FROM aibridge_interceptions
INNER JOIN bridgelog_erased_users ON aibridge_interceptions.initiator_id = bridgelog_erased_users.user_id
WHERE aibridge_interceptions.started_at <= bridgelog_erased_users.erased_until;

-- Interceptions that never ended are in no other order; there are few.
DROP INDEX IF EXISTS aibridge_interceptions_running_started_at_idx;
CREATE INDEX CONCURRENTLY aibridge_interceptions_running_started_at_idx
ON aibridge_interceptions (started_at, id) WHERE ended_at IS NULL;

-- What has content, the oldest first: what was removed is not in it, so no batch meets it again.
DROP INDEX IF EXISTS aibridge_user_prompts_content_idx;
CREATE INDEX CONCURRENTLY aibridge_user_prompts_content_idx
ON aibridge_user_prompts (created_at) WHERE prompt <> '';

DROP INDEX IF EXISTS aibridge_tool_usages_content_idx;
CREATE INDEX CONCURRENTLY aibridge_tool_usages_content_idx
ON aibridge_tool_usages (created_at) WHERE input <> '';

DROP INDEX IF EXISTS aibridge_model_thoughts_content_idx;
CREATE INDEX CONCURRENTLY aibridge_model_thoughts_content_idx
ON aibridge_model_thoughts (created_at) WHERE content <> '';
