-- insert_user_prompts: what people asked in some new interceptions: in those that answer no tool call.
--
-- param   interception_ids  uuid[]  interceptions without prompts
-- result  none
-- index   aibridge_interceptions_pkey
WITH words AS (
    -- %1$s is a service, %2$s a file, %3$s a name in the code, %4$s a number, %5$s a table.
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
            'AcquireLock', 'renderRow', 'normalize_address', 'CancelOrder', 'decodeCursor', 'rotate_keys',
            'serializeEvent', 'pollStatus'
        ] AS names,
        ARRAY[
            'orders', 'invoice_lines', 'events', 'sessions', 'audit_log', 'shipments', 'price_history',
            'user_preferences', 'outbox', 'job_runs', 'ledger_entries', 'webhook_deliveries'
        ] AS tables,
        ARRAY[
            'Review the diff on this branch. Look for races and missing error handling in %2$s first, '
            || 'style last.',
            'Can you review %2$s? I rewrote %3$s and I am not sure the retry logic is right.',
            'Review PR #%4$s in %1$s as if you were going to be paged for it.',
            'Write unit tests for %3$s in %2$s. Cover the empty input, the timeout and the duplicate id.',
            'Add table-driven tests for %3$s, and make the existing ones run in parallel.',
            'The tests for %3$s are flaky in CI but pass locally. Find out why before you change anything.',
            'tests/integration fails with "connection refused" since we moved %1$s to the new runner. Fix '
            || 'the fixture.',
            'Raise the coverage of %2$s above 85%% without testing private functions.',
            'Explain what %3$s does, step by step, and who calls it.',
            'Why does %3$s take a lock here? Could it deadlock with the one in %2$s?',
            'Refactor %2$s: it has grown to %4$s lines. Split it by responsibility, keep the public API.',
            'Rename %3$s to something that says what it returns, everywhere, including docs.',
            'Replace the hand-written client in %1$s with the generated one and delete what is no longer used.',
            'Convert lib/auth/session.ts from callbacks to async/await. Behaviour must not change.',
            'This query on %5$s takes %4$s ms: SELECT * FROM %5$s WHERE status = $1 ORDER BY created_at '
            || 'DESC LIMIT 50. Which index do I need?',
            'Write a migration that adds a nullable column "source" to %5$s, backfills it in batches and '
            || 'then sets NOT NULL.',
            'EXPLAIN ANALYZE shows a sequential scan on %5$s although there is an index on tenant_id. Why?',
            'Write a query for the 95th percentile of the time between the first and the last row per '
            || 'customer in %5$s.',
            'We get "deadlock detected" on %5$s about %4$s times a day. Here is the log, tell me which '
            || 'transactions collide.',
            'Partition %5$s by month without downtime. Give me the steps and the rollback for each.',
            'terraform plan wants to replace the RDS instance of %1$s. What in '
            || 'terraform/modules/rds/main.tf forces that, and how do I avoid it?',
            'Write a Terraform module for an S3 bucket for %1$s with versioning, SSE-KMS and a lifecycle '
            || 'rule of 90 days.',
            'Move the %1$s state from the default workspace to its own backend without recreating anything.',
            'Pods of %1$s are in CrashLoopBackOff after the deploy. kubectl describe says OOMKilled. Where '
            || 'do I look?',
            'Write a PodDisruptionBudget and topology spread for %1$s so that a zone can go away.',
            'The HPA of %1$s flaps between 3 and 12 replicas every few minutes. Propose settings and '
            || 'explain them.',
            'Convert this docker-compose service to a Helm chart like the one in charts/%1$s.',
            'Our ingress returns 504 for uploads over %4$s MB to %1$s. Which timeouts are in the path?',
            'Debug this panic: runtime error: invalid memory address or nil pointer dereference in %3$s '
            || '(internal/store/postgres.go:%4$s)',
            'TypeError: Cannot read properties of undefined (reading ''map'') at %3$s '
            || '(src/components/DataTable.tsx:%4$s:17). Only in production.',
            'sqlalchemy.exc.TimeoutError: QueuePool limit of size 5 overflow 10 reached in %1$s. Find the leak.',
            'Requests to %1$s hang after exactly 60 s. Nothing in the logs. How would you narrow it down?',
            'Memory of %1$s grows by about %4$s MB a day. I attached a heap profile, what holds on to the '
            || 'buffers?',
            'Users report being logged out at random since yesterday. Check lib/auth for anything about '
            || 'token expiry.',
            'git bisect points to the commit that touched %3$s. What in it could change rounding?',
            'Add an endpoint GET /v1/%5$s with cursor pagination, like the one we have in %2$s.',
            'Add a --dry-run flag to scripts/backfill.py that prints what would change.',
            'Implement exponential backoff with jitter in %3$s, cap at 30 s, and make the clock injectable.',
            'Add structured logging to %2$s: request id, tenant, duration. No payloads, please.',
            'Add OpenTelemetry spans around the calls that %1$s makes to the database.',
            'Make %3$s idempotent: the queue delivers at least once and we double-charged %4$s customers.',
            'Implement optimistic locking for %5$s with a version column.',
            'Cache the result of %3$s for 5 minutes per tenant, and make sure a stampede cannot happen.',
            'Add a feature flag for the new checkout flow and remove the one from last quarter.',
            'Write a GitHub Actions workflow that runs lint, tests and the image build, and caches Go modules.',
            'CI takes half an hour. Look at .github/workflows and tell me what can run in parallel.',
            'Upgrade %1$s to the next major version of the framework. List the breaking changes that touch '
            || 'us first.',
            'npm audit reports a high severity advisory in a transitive dependency of %1$s. Do we actually '
            || 'reach that code?',
            'Bump the base image of %1$s and check that nothing depends on glibc.',
            'Write a Grafana query for the error budget burn of %1$s over 1h and 6h windows.',
            'Turn this alert into something actionable: "%1$s latency high". What should the runbook say?',
            'Write a postmortem draft from these notes. Timeline, impact, what went well, what did not. No '
            || 'blame.',
            'Update docs/runbooks/failover.md: the replica is now promoted by Patroni, not by hand.',
            'Write the changelog entry for this release from git log, for users, not for developers.',
            'Summarise what changed in %1$s during the last week for our stand-up, five bullets.',
            'Make the table in src/components/DataTable.tsx keyboard accessible and announce the sort order.',
            'The layout of the settings page breaks below 400px. Fix it without new breakpoints.',
            'Replace moment with date-fns in src/hooks/useFilters.ts, keep the formats that the tests expect.',
            'Write a regex that matches our ticket ids (PLAT-%4$s, OPS-12) but not branch names.',
            'Bash: find the twenty largest files under /var/log changed in the last day, null-safe.',
            'Is it safe to call %3$s from several goroutines? If not, show me the smallest change that '
            || 'makes it so.',
            'Translate app/tasks/nightly_export.py from Python to Go, idiomatic, same tests.',
            'Generate a JSON schema for the body of POST /v1/%5$s and validate it at the edge.',
            'Design: we want to move %5$s out of the monolith into %1$s. What are the options and which '
            || 'would you pick?',
            'Compare SELECT … FOR UPDATE SKIP LOCKED with a real queue for the jobs in %5$s at about %4$s '
            || 'jobs a second.',
            'What is the blast radius if the credentials of %1$s leak? Look at the IAM policy in '
            || 'terraform/modules.',
            'Check %2$s for injection and for secrets in logs.',
            'Implement PLAT-%4$s. The ticket has the acceptance criteria; ask if something is unclear.',
            'Look at PLAT-%4$s and reproduce it with a failing test in %1$s.',
            'Why is the build of %1$s not reproducible? Two runs give different digests.'
        ] AS openings,
        ARRAY[
            'Yes, go ahead.',
            'ok, now run the tests',
            'That broke %3$s, please look at the output again.',
            'continue',
            'Do the same for %2$s.',
            'No, keep the old signature and add an overload.',
            'Looks good. Commit it.',
            'Why not use the helper we already have in %2$s?',
            'Explain the second change, I do not follow.',
            'Undo the last edit, it is too clever.',
            'Also add a test for the case where %5$s is empty.',
            'lint fails: line too long in %2$s:%4$s',
            'What happens if this runs twice?',
            'Please shorten the comments.',
            'The same error again, in %3$s this time.',
            'Can you do it without the new dependency?',
            'try again',
            'Now write the description of the pull request.',
            'Good. What did you leave out?',
            'use the real table name, %5$s',
            'Rebase on main and fix the conflicts in %2$s.',
            'Is there a simpler way?',
            'Which of these are safe to deploy today?',
            'it still fails on CI, see run #%4$s',
            'yes but only for %1$s',
            'Show me the diff first.'
        ] AS follow_ups,
        ARRAY[
            'Classify the following support ticket as one of: billing, bug, feature, other. Answer with '
            || 'the word only.'
            || E'\n\nTicket #%4$s: "Since the update the export of %5$s ends after 1,000 rows."',
            E'Summarise this incident channel in three sentences for the status page.\n\nService: '
            || E'%1$s\nMessages: %4$s',
            'Extract vendor, date, currency and total from this invoice as JSON. Use null where a value is '
            || 'missing.',
            'You are a release-notes bot. Group these commits of %1$s by user-visible effect.',
            'Translate the following UI strings to German, keep placeholders like {count} as they are.',
            'Rate the similarity of the two product descriptions from 0 to 100. Answer with the number only.',
            'Write a one-line description for the table %5$s from its columns.',
            'Does this log line contain personal data? Answer yes or no.'
            || E'\n\nlevel=warn service=%1$s msg="retrying" attempt=%4$s',
            'Answer the question from the context only; say "I do not know" otherwise. Question: how do I '
            || 'rotate the key of %1$s?',
            'Suggest labels for the pull request with these changed files: %2$s'
        ] AS pipeline_prompts,
        ARRAY[
            '',
            '',
            '',
            '',
            '',
            '',
            '',
            '',
            '',
            E'\n\nDo not touch generated files.',
            E'\n\nKeep the diff small.',
            ' Thanks!',
            E'\n\nConstraints:\n- no new dependencies\n- no change of the public API\n- %3$s must stay '
            || E'fast (p99 < 20 ms)',
            E'\n\nRead CONTRIBUTING.md first.',
            E'\n\nHere is what I tried: restarting %1$s, raising the limit to %4$s, nothing.',
            E'\n\n```\n11:02:17 ERROR %1$s: %3$s failed err="context canceled" '
            || E'attempt=3\n11:02:19 ERROR %1$s: giving up after %4$s ms\n```',
            E'\n\nAnswer in a few sentences, no code yet.',
            ' cc the on-call'
        ] AS closings
),

parent AS (
    SELECT
        stored.id,
        stored.provider,
        stored.client,
        stored.started_at,
        stored.metadata ->> 'status' = 'failed' AS is_failed,
        coalesce(stored.client, 'Unknown') <> 'Unknown' AS is_agent,
        row_number() OVER (PARTITION BY stored.session_id ORDER BY stored.started_at ASC, stored.id ASC) AS place,
        uuid_hash_extended(stored.id, 8) AS dice,
        hashtextextended(stored.session_id, 7) AS session_dice,
        sha256((stored.id || ' 1')::bytea) AS bytes,
        md5(stored.id || ' prompt') AS hex
    FROM unnest(:interception_ids::uuid[]) AS listed (id)
    CROSS JOIN LATERAL (
        SELECT
            id,
            provider,
            client,
            session_id,
            metadata,
            started_at
        FROM aibridge_interceptions
        WHERE aibridge_interceptions.id = listed.id
            AND thread_parent_id IS NULL
        -- keeps this a look-up by id, whatever size the planner takes the table for
        ORDER BY id ASC
        LIMIT 1
    ) AS stored
)

INSERT INTO aibridge_user_prompts (id, interception_id, provider_response_id, prompt, created_at)
SELECT
    (
        substr(parent.hex, 1, 12) || '4' || substr(parent.hex, 14, 3)
        || substr('89ab', 1 + (parent.dice & 3)::integer, 1) || substr(parent.hex, 18)
    )::uuid,
    parent.id,
    CASE
        WHEN parent.is_failed THEN ''
        WHEN parent.provider = 'anthropic'
            THEN 'msg_01' || substr(translate(encode(parent.bytes, 'base64'), '+/=', ''), 1, 22)
        WHEN parent.client = 'Codex' THEN 'resp_' || substr(encode(parent.bytes, 'hex'), 1, 50)
        ELSE 'chatcmpl-' || substr(translate(encode(parent.bytes, 'base64'), '+/=', ''), 1, 29)
    END,
    format(
        CASE
            WHEN NOT parent.is_agent
                THEN words.pipeline_prompts[1 + (parent.dice >> 4 & 65535) % cardinality(words.pipeline_prompts)]
            WHEN parent.place > 1 AND parent.dice >> 20 & 1023 < 560
                THEN words.follow_ups[1 + (parent.dice >> 4 & 65535) % cardinality(words.follow_ups)]
            ELSE
                words.openings[1 + (parent.dice >> 4 & 65535) % cardinality(words.openings)]
                || words.closings[1 + (parent.dice >> 30 & 65535) % cardinality(words.closings)]
        END,
        words.services[1 + (parent.session_dice & 65535) % cardinality(words.services)],
        words.files[1 + (parent.dice >> 36 & 65535) % cardinality(words.files)],
        words.names[1 + (parent.dice >> 41 & 65535) % cardinality(words.names)],
        12 + (parent.dice >> 46 & 1023),
        words.tables[1 + (parent.dice >> 51 & 4095) % cardinality(words.tables)]
    ),
    parent.started_at + interval '1 microsecond' * (1300 + (parent.dice >> 10 & 65535))
FROM parent
CROSS JOIN words
-- one in forty sent an image and no text
WHERE parent.dice >> 24 & 1023 >= 25
ON CONFLICT DO NOTHING
