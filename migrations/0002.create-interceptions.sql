-- The log itself: interceptions and what each of them owns, named and typed as a Coder deployment has them. initiator_id,
-- api_key_id and thread_* carry no foreign key on purpose: a record outlives the user, the token and the thread that it
-- speaks of. The children die with their interception.

CREATE TABLE aibridge_interceptions (
    id uuid NOT NULL,
    initiator_id uuid NOT NULL,
    api_key_id text,
    provider text NOT NULL,
    provider_name text NOT NULL DEFAULT '',
    model text NOT NULL,
    client varchar(64),
    metadata jsonb NOT NULL DEFAULT '{}',
    started_at timestamptz NOT NULL,
    ended_at timestamptz,
    thread_parent_id uuid,
    thread_root_id uuid,
    client_session_id varchar(256),
    session_id text NOT NULL GENERATED ALWAYS AS (
        coalesce(client_session_id, thread_root_id::text, id::text)
    ) STORED,
    CONSTRAINT aibridge_interceptions_pkey PRIMARY KEY (id),
    -- RFC 3339 has no others: what could not be listed and searched for is not let in by any door.
    CONSTRAINT aibridge_interceptions_started_at_check
    CHECK (started_at BETWEEN '0001-01-01 00:00:00Z' AND '9999-12-31 23:59:59.999999Z'),
    CONSTRAINT aibridge_interceptions_ended_at_check
    CHECK (ended_at BETWEEN '0001-01-01 00:00:00Z' AND '9999-12-31 23:59:59.999999Z')
);

-- Only interceptions that have ended are listed and counted: the two orders in which pages are read, everyone's and one
-- initiator's.
CREATE INDEX aibridge_interceptions_started_at_idx
ON aibridge_interceptions (started_at DESC, id DESC) WHERE ended_at IS NOT NULL;

CREATE INDEX aibridge_interceptions_initiator_started_at_idx
ON aibridge_interceptions (initiator_id, started_at DESC, id DESC) WHERE ended_at IS NOT NULL;

-- The same order within one model or one client, so that a page of a rare one is found as soon as that of a common one. A
-- client that is null reads 'Unknown'.
CREATE INDEX aibridge_interceptions_model_started_at_idx
ON aibridge_interceptions (model, started_at DESC, id DESC) WHERE ended_at IS NOT NULL;

CREATE INDEX aibridge_interceptions_client_started_at_idx
ON aibridge_interceptions ((coalesce(client::text, 'Unknown')), started_at DESC, id DESC) WHERE ended_at IS NOT NULL;

CREATE TABLE aibridge_token_usages (
    id uuid NOT NULL,
    interception_id uuid NOT NULL,
    provider_response_id text NOT NULL,
    input_tokens bigint NOT NULL,
    output_tokens bigint NOT NULL,
    cache_read_input_tokens bigint NOT NULL DEFAULT 0,
    cache_write_input_tokens bigint NOT NULL DEFAULT 0,
    metadata jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL,
    CONSTRAINT aibridge_token_usages_pkey PRIMARY KEY (id),
    CONSTRAINT aibridge_token_usages_interception_id_fkey
    FOREIGN KEY (interception_id) REFERENCES aibridge_interceptions (id) ON DELETE CASCADE
);

CREATE INDEX aibridge_token_usages_interception_id_idx ON aibridge_token_usages (interception_id);

CREATE TABLE aibridge_user_prompts (
    id uuid NOT NULL,
    interception_id uuid NOT NULL,
    provider_response_id text NOT NULL,
    prompt text NOT NULL,
    metadata jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL,
    CONSTRAINT aibridge_user_prompts_pkey PRIMARY KEY (id),
    CONSTRAINT aibridge_user_prompts_interception_id_fkey
    FOREIGN KEY (interception_id) REFERENCES aibridge_interceptions (id) ON DELETE CASCADE
);

CREATE INDEX aibridge_user_prompts_interception_id_idx ON aibridge_user_prompts (interception_id);

CREATE TABLE aibridge_tool_usages (
    id uuid NOT NULL,
    interception_id uuid NOT NULL,
    provider_response_id text NOT NULL,
    provider_tool_call_id text,
    server_url text,
    tool text NOT NULL,
    input text NOT NULL,
    injected boolean NOT NULL DEFAULT FALSE,
    invocation_error text,
    metadata jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL,
    CONSTRAINT aibridge_tool_usages_pkey PRIMARY KEY (id),
    CONSTRAINT aibridge_tool_usages_interception_id_fkey
    FOREIGN KEY (interception_id) REFERENCES aibridge_interceptions (id) ON DELETE CASCADE
);

CREATE INDEX aibridge_tool_usages_interception_id_idx ON aibridge_tool_usages (interception_id);

-- A request that answers a tool call finds its thread by the call's id, the newest first: some providers count their calls
-- from 0 each time.
CREATE INDEX aibridge_tool_usages_provider_tool_call_id_idx
ON aibridge_tool_usages (provider_tool_call_id, created_at DESC, id DESC) WHERE provider_tool_call_id IS NOT NULL;

CREATE TABLE aibridge_model_thoughts (
    interception_id uuid NOT NULL,
    content text NOT NULL,
    metadata jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL,
    CONSTRAINT aibridge_model_thoughts_interception_id_fkey
    FOREIGN KEY (interception_id) REFERENCES aibridge_interceptions (id) ON DELETE CASCADE
);

-- A thought has no id: interception, instant and content are its identity. Contents outgrow what an index entry holds, so
-- their SHA-256 stands in for them. decode(…, 'escape'), its backslashes doubled, is the immutable way from text to bytes.
CREATE UNIQUE INDEX aibridge_model_thoughts_identity_idx
ON aibridge_model_thoughts (interception_id, created_at, sha256(decode(replace(content, '\', '\\'), 'escape')));
