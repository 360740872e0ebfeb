-- insert_tool_usages: the tool calls of some new interceptions: those that the client runs, after the last answer, and
-- injected ones, which the gateway ran between two answers; only of these does it know the errors.
--
-- param   interception_ids  uuid[]  interceptions without tool usages
-- result  none
-- index   aibridge_interceptions_pkey
WITH words AS (
    SELECT
        ARRAY[
            'checkout', 'billing', 'ledger', 'inventory', 'notifications', 'identity', 'search-api', 'edge-proxy',
            'reports', 'scheduler', 'webhooks', 'catalog', 'payments', 'ingest', 'feature-flags', 'mobile-bff',
            'audit', 'shipping'
        ] AS services,
        ARRAY[
            'internal/api/handler.go',
            'src/services/orders.ts',
            'app/models/invoice.py',
            'pkg/queue/consumer.go',
            'src/components/DataTable.tsx',
            'lib/auth/session.ts',
            'internal/store/postgres.go',
            'tests/test_pricing.py',
            'terraform/modules/rds/main.tf',
            'charts/api/values.yaml',
            'cmd/server/main.go',
            'src/hooks/useFilters.ts',
            'app/tasks/nightly_export.py',
            'src/lib/money.rs',
            'internal/retry/backoff.go',
            'migrations/0042_add_index.sql',
            '.github/workflows/ci.yml',
            'src/main/java/com/acme/billing/TaxService.java',
            'docs/runbooks/failover.md',
            'app/serializers.py',
            'internal/cache/lru.go',
            'src/routes/webhooks.ts',
            'scripts/backfill.py',
            'Makefile'
        ] AS files,
        ARRAY[
            'ParseAmount', 'retry_with_backoff', 'useDebouncedValue', 'RefreshToken', 'compute_totals', 'flushBatch',
            'validateSchema', 'NewConsumer', 'apply_discount', 'handleTimeout', 'mergeConfig', 'list_invoices',
            'AcquireLock', 'renderRow', 'normalize_address', 'CancelOrder', 'decodeCursor', 'rotate_keys'
        ] AS names,
        ARRAY[
            'MCP error -32603: upstream request failed: 502 Bad Gateway',
            'context deadline exceeded',
            'MCP error -32602: Invalid arguments for tool: "owner" is required',
            'failed to get issue: 404 Not Found',
            '403 Resource not accessible by personal access token',
            'tool call rate limited, retry after 32s'
        ] AS problems
),

-- The tools of each client, and their input: %1$s is a service, %2$s a file, %3$s a name in the code, %4$s a number.
tool (client, name, input) AS (
    VALUES
    ('Claude Code', 'Read', '{"file_path": "/home/coder/%1$s/%2$s"}'),
    ('Claude Code', 'Read', '{"file_path": "/home/coder/%1$s/%2$s", "offset": %4$s, "limit": 120}'),
    ('Claude Code', 'Read', '{"file_path": "/home/coder/%1$s/README.md"}'),
    (
        'Claude Code', 'Edit',
        '{"file_path": "/home/coder/%1$s/app/clients.py", "old_string": "    timeout = 30", "new_string": '
        || '"    timeout = config.%3$s.timeout", "replace_all": false}'
    ),
    (
        'Claude Code', 'Edit',
        '{"file_path": "/home/coder/%1$s/internal/api/handler.go", "old_string": "if err != nil '
        || '{\n\t\treturn err\n\t}", "new_string": "if err != nil {\n\t\treturn fmt.Errorf(\"%3$s: %%w\", '
        || 'err)\n\t}", "replace_all": false}'
    ),
    (
        'Claude Code', 'Bash',
        '{"command": "git diff --stat HEAD~1 && git status --short", "description": "Show the changes"}'
    ),
    (
        'Claude Code', 'Bash',
        '{"command": "cd /home/coder/%1$s && make test 2>&1 | tail -n 60", "description": "Run the tests", '
        || '"timeout": 300000}'
    ),
    (
        'Claude Code', 'Bash',
        '{"command": "kubectl -n %1$s get pods -o wide", "description": "List the pods of the namespace"}'
    ),
    ('Claude Code', 'Bash', '{"command": "go test ./... -run %3$s -count=1", "description": "Run one test"}'),
    (
        'Claude Code', 'Grep',
        '{"pattern": "%3$s\\(", "path": "/home/coder/%1$s", "output_mode": "content", "-n": true}'
    ),
    ('Claude Code', 'Grep', '{"pattern": "%3$s", "glob": "**/*.{ts,tsx}", "output_mode": "files_with_matches"}'),
    ('Claude Code', 'Glob', '{"pattern": "**/*_test.go", "path": "/home/coder/%1$s"}'),
    (
        'Claude Code', 'Write',
        '{"file_path": "/home/coder/%1$s/docs/notes-%4$s.md", "content": "# %3$s\n\nWhy it retries, and '
        || 'what a caller may rely on.\n\n- idempotent by request id\n- gives up after 5 attempts\n"}'
    ),
    (
        'Claude Code', 'TodoWrite',
        '{"todos": [{"content": "Reproduce the failure in %3$s", "status": "completed", "activeForm": '
        || '"Reproducing the failure"}, {"content": "Fix it", "status": "in_progress", "activeForm": "Fixing '
        || 'it"}]}'
    ),
    (
        'Claude Code', 'Task',
        '{"description": "Find callers of %3$s", "prompt": "Find every caller of %3$s in %1$s and report '
        || 'file, line, and whether the error is handled.", "subagent_type": "Explore"}'
    ),
    (
        'Claude Code', 'WebFetch',
        '{"url": "https://www.postgresql.org/docs/current/sql-createindex.html", "prompt": "What locks '
        || 'does CREATE INDEX CONCURRENTLY take?"}'
    ),
    ('Codex', 'shell', '{"command": ["bash", "-lc", "sed -n ''%4$s,+80p'' %2$s"], "workdir": "/workspace/%1$s"}'),
    (
        'Codex', 'shell',
        '{"command": ["bash", "-lc", "rg -n \"%3$s\" --glob ''!vendor''"], "workdir": "/workspace/%1$s"}'
    ),
    (
        'Codex', 'shell',
        '{"command": ["bash", "-lc", "pytest -q -k %3$s"], "workdir": "/workspace/%1$s", "timeout_ms": 120000}'
    ),
    (
        'Codex', 'shell',
        '{"command": ["bash", "-lc", "git log --oneline -n 20 -- %2$s"], "workdir": "/workspace/%1$s"}'
    ),
    ('Codex', 'shell', '{"command": ["bash", "-lc", "ls -la && cat package.json"], "workdir": "/workspace/%1$s"}'),
    (
        'Codex', 'apply_patch',
        E'*** Begin Patch\n*** Update File: app/models/invoice.py\n@@ %3$s\n-    return None\n+    raise '
        || E'LookupError(key)\n*** End Patch\n'
    ),
    (
        'Codex', 'update_plan',
        '{"explanation": "", "plan": [{"step": "Read %2$s", "status": "completed"}, {"step": "Change '
        || '%3$s", "status": "in_progress"}, {"step": "Run the tests", "status": "pending"}]}'
    ),
    (
        'Cursor', 'read_file',
        '{"target_file": "%2$s", "should_read_entire_file": false, "start_line_one_indexed": %4$s}'
    ),
    ('Cursor', 'codebase_search', '{"query": "Where is %3$s called in %1$s?", "target_directories": []}'),
    (
        'Cursor', 'edit_file',
        '{"target_file": "src/components/DataTable.tsx", "instructions": "Return early when the list is '
        || 'empty.", "code_edit": "// ... existing code ...\n  if (rows.length === 0) return null;\n// ... '
        || 'existing code ..."}'
    ),
    ('Cursor', 'run_terminal_cmd', '{"command": "npm test -- --runInBand %3$s", "is_background": false}'),
    ('Cursor', 'grep', '{"pattern": "%3$s", "path": "src", "output_mode": "content"}'),
    ('Cursor', 'list_dir', '{"relative_workspace_path": "src"}'),
    (
        'GitHub Copilot (VS Code)', 'read_file',
        '{"filePath": "/Users/dev/src/%1$s/%2$s", "startLine": 1, "endLine": %4$s}'
    ),
    ('GitHub Copilot (VS Code)', 'grep_search', '{"query": "%3$s", "isRegexp": false, "includePattern": "**/*.ts"}'),
    ('GitHub Copilot (VS Code)', 'semantic_search', '{"query": "%3$s error handling in the %1$s service"}'),
    (
        'GitHub Copilot (VS Code)', 'replace_string_in_file',
        '{"filePath": "/Users/dev/src/%1$s/src/routes/webhooks.ts", "oldString": "const limit = 100;", '
        || '"newString": "const limit = options.limit ?? 100;"}'
    ),
    (
        'GitHub Copilot (VS Code)', 'run_in_terminal',
        '{"command": "npm run lint -- %2$s", "explanation": "Lint the changed file", "isBackground": false}'
    ),
    ('GitHub Copilot (VS Code)', 'get_errors', '{"filePaths": ["/Users/dev/src/%1$s/%2$s"]}'),
    ('Zed', 'read_file', '{"path": "%1$s/%2$s", "start_line": 1, "end_line": %4$s}'),
    ('Zed', 'grep', '{"regex": "fn %3$s", "include_pattern": "**/*.rs"}'),
    (
        'Zed', 'edit_file',
        '{"display_description": "Handle the empty case in %3$s", "path": "%1$s/%2$s", "mode": "edit"}'
    ),
    ('Zed', 'terminal', '{"command": "cargo test -p %1$s", "cd": "%1$s"}'),
    ('Zed', 'find_path', '{"glob": "**/*%3$s*"}'),
    ('Zed', 'diagnostics', '{"path": "%1$s/%2$s"}'),
    ('Mux', 'file_read', '{"filePath": "%2$s", "offset": %4$s, "limit": 200}'),
    ('Mux', 'bash', '{"script": "rg -n %3$s | head -40", "timeout_secs": 30, "display_name": "search"}'),
    ('Mux', 'bash', '{"script": "make lint test", "timeout_secs": 600, "display_name": "checks"}'),
    (
        'Mux', 'file_edit_replace_string',
        '{"file_path": "src/services/orders.ts", "old_string": "maxRetries: 3", "new_string": "maxRetries: '
        || 'cfg.maxRetries"}'
    ),
    ('Mux', 'todo_write', '{"todos": [{"content": "Trace %3$s through %1$s", "status": "in_progress"}]}'),
    ('Roo Code', 'read_file', '{"args": {"file": [{"path": "%2$s"}]}}'),
    ('Roo Code', 'search_files', '{"path": ".", "regex": "%3$s", "file_pattern": "*.py"}'),
    ('Roo Code', 'execute_command', '{"command": "docker compose run --rm %1$s pytest -x", "cwd": null}'),
    (
        'Roo Code', 'apply_diff',
        '{"path": "app/models/invoice.py", "diff": "<<<<<<< SEARCH\n:start_line:%4$s\n-------\n    return '
        || 'total\n=======\n    return round(total, 2)\n>>>>>>> REPLACE"}'
    ),
    ('Roo Code', 'attempt_completion', '{"result": "Changed %3$s in %2$s; the tests pass."}')
),

numbered_tool AS (
    SELECT
        client,
        name,
        input,
        row_number() OVER (PARTITION BY client ORDER BY name ASC, input ASC) - 1 AS number
    FROM tool
),

kit AS (
    SELECT
        client,
        count(*) AS choices
    FROM tool
    GROUP BY client
),

injected_tool (number, server_url, name, input) AS (
    VALUES
    (0, 'https://api.githubcopilot.com/mcp/', 'bmcp_github_search_code', '{"query": "org:acme %3$s language:go"}'),
    (
        1, 'https://api.githubcopilot.com/mcp/', 'bmcp_github_get_pull_request_diff',
        '{"owner": "acme", "repo": "%1$s", "pullNumber": %4$s}'
    ),
    (
        2, 'https://api.githubcopilot.com/mcp/', 'bmcp_github_list_issues',
        '{"owner": "acme", "repo": "%1$s", "state": "OPEN", "perPage": 20}'
    ),
    (3, 'https://mcp.linear.app/mcp', 'bmcp_linear_get_issue', '{"id": "PLAT-%4$s"}'),
    (4, 'https://mcp.linear.app/mcp', 'bmcp_linear_list_comments', '{"issueId": "PLAT-%4$s"}'),
    (
        5, 'https://mcp.sentry.dev/mcp', 'bmcp_sentry_search_issues',
        '{"organizationSlug": "acme", "naturalLanguageQuery": "unresolved errors in %1$s since yesterday"}'
    ),
    (
        6, 'https://coder.acme.example/api/experimental/mcp/http', 'bmcp_coder_coder_list_workspaces',
        '{"owner": "me"}'
    ),
    (
        7, 'https://coder.acme.example/api/experimental/mcp/http', 'bmcp_coder_coder_workspace_bash',
        '{"workspace": "%1$s-dev", "command": "systemctl status %1$s --no-pager", "timeout_ms": 20000}'
    )
),

parent AS (
    SELECT
        stored.id,
        stored.provider,
        stored.client,
        stored.started_at,
        stored.ended_at - stored.started_at AS duration,
        uuid_hash_extended(stored.id, 6) AS dice,
        hashtextextended(stored.session_id, 7) AS session_dice,
        -- the same draws as in insert_token_usages and insert_interceptions
        1 + width_bucket((uuid_hash_extended(stored.id, 2) & 1023)::integer, '{900, 985}'::integer[]) AS answers,
        width_bucket((uuid_hash_extended(stored.id, 1) & 1023)::integer, '{330, 800, 930, 985}'::integer[]) AS calls
    FROM unnest(:interception_ids::uuid[]) AS listed (id)
    CROSS JOIN LATERAL (
        SELECT
            id,
            provider,
            client,
            session_id,
            started_at,
            ended_at
        FROM aibridge_interceptions
        WHERE aibridge_interceptions.id = listed.id
            AND ended_at IS NOT NULL
            AND metadata ->> 'status' = 'completed'
            AND client <> 'Unknown'
        -- keeps this a look-up by id, whatever size the planner takes the table for
        ORDER BY id ASC
        LIMIT 1
    ) AS stored
),

-- First the injected calls, one for each answer but the last, then the client's.
call AS (
    SELECT
        parent.id AS interception_id,
        parent.provider,
        parent.client,
        number,
        number < parent.answers AS injected,
        parent.session_dice,
        uuid_hash_extended(parent.id, 100 + number) AS dice,
        sha256((parent.id || ' ' || least(number, parent.answers))::bytea) AS answer_bytes,
        sha256((parent.id || ' call ' || number)::bytea) AS call_bytes,
        md5(parent.id || ' tool usage ' || number) AS hex,
        parent.started_at
        + (parent.duration - interval '1 microsecond' * (3000 + (parent.dice & 131071)))
        * (least(number, parent.answers)::float8 / parent.answers)
        - interval '41 microseconds' * (parent.answers + parent.calls - number) AS created_at
    FROM parent
    CROSS JOIN LATERAL generate_series(1, parent.answers - 1 + parent.calls) AS number
)

INSERT INTO aibridge_tool_usages (
    id,
    interception_id,
    provider_response_id,
    provider_tool_call_id,
    server_url,
    tool,
    input,
    injected,
    invocation_error,
    created_at
)
SELECT
    (
        substr(call.hex, 1, 12) || '4' || substr(call.hex, 14, 3)
        || substr('89ab', 1 + (call.dice & 3)::integer, 1) || substr(call.hex, 18)
    )::uuid,
    call.interception_id,
    CASE
        WHEN call.provider = 'anthropic'
            THEN 'msg_01' || substr(translate(encode(call.answer_bytes, 'base64'), '+/=', ''), 1, 22)
        WHEN call.client = 'Codex' THEN 'resp_' || substr(encode(call.answer_bytes, 'hex'), 1, 50)
        ELSE 'chatcmpl-' || substr(translate(encode(call.answer_bytes, 'base64'), '+/=', ''), 1, 29)
    END,
    CASE WHEN call.provider = 'anthropic' THEN 'toolu_01' ELSE 'call_' END
    || substr(translate(encode(call.call_bytes, 'base64'), '+/=', ''), 1, 22),
    injected_tool.server_url,
    coalesce(injected_tool.name, numbered_tool.name),
    format(
        coalesce(injected_tool.input, numbered_tool.input),
        words.services[1 + (call.session_dice & 65535) % cardinality(words.services)],
        words.files[1 + (call.dice >> 4 & 65535) % cardinality(words.files)],
        words.names[1 + (call.dice >> 20 & 65535) % cardinality(words.names)],
        20 + (call.dice >> 36 & 1023)
    ),
    call.injected,
    CASE
        WHEN call.injected AND call.dice >> 50 & 1023 < 70
            THEN words.problems[1 + (call.dice >> 8 & 1023) % cardinality(words.problems)]
    END,
    call.created_at
FROM call
CROSS JOIN words
LEFT JOIN injected_tool
    ON
        call.injected
        AND (call.dice >> 44 & 7) = injected_tool.number
LEFT JOIN kit ON call.client = kit.client
LEFT JOIN numbered_tool
    ON
        NOT call.injected
        AND call.client = numbered_tool.client
        AND (call.dice >> 44 & 4095) % kit.choices = numbered_tool.number
ON CONFLICT DO NOTHING
