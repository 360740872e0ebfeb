\set number random(1, 9000000000000000000)
\set person random(1, 200)
BEGIN;
INSERT INTO aibridge_interceptions (id, initiator_id, provider, provider_name, model, client, started_at, ended_at) VALUES (md5(:number::text)::uuid, md5(:person::text)::uuid, 'anthropic', 'anthropic', 'claude-sonnet-4-6', 'Claude Code', now() - :age::interval, now());
INSERT INTO aibridge_token_usages (id, interception_id, provider_response_id, input_tokens, output_tokens, created_at) VALUES (gen_random_uuid(), md5(:number::text)::uuid, 'msg_01', 1200, 340, now()), (gen_random_uuid(), md5(:number::text)::uuid, 'msg_02', 1540, 120, now());
INSERT INTO aibridge_user_prompts (id, interception_id, provider_response_id, prompt, created_at) VALUES (gen_random_uuid(), md5(:number::text)::uuid, 'msg_01', 'Move the feature flags from the default workspace to a backend of their own', now());
INSERT INTO aibridge_tool_usages (id, interception_id, provider_response_id, provider_tool_call_id, tool, input, created_at) VALUES (gen_random_uuid(), md5(:number::text)::uuid, 'msg_01', md5(:number::text), 'shell', '{"command": "git status --short"}', now()), (gen_random_uuid(), md5(:number::text)::uuid, 'msg_02', md5(:person::text), 'read', '{"path": "README.md"}', now());
COMMIT;
