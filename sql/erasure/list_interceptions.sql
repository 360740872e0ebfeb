-- list_interceptions: some of the interceptions of an initiator, the oldest first, from a place in that order.
--
-- param   running           boolean      optional: those that never ended, instead of those that did
-- param   user_id           uuid         the initiator
-- param   erased_until      timestamptz  what started up to this instant
-- param   after_started_at  timestamptz  optional: only what follows this instant …
-- param   after_id          uuid         optional: … and this id
-- param   most              bigint       at most this many
-- result  many  id uuid, started_at timestamptz
-- index   aibridge_interceptions_running_started_at_idx
SELECT
    id,
    started_at
FROM aibridge_interceptions
WHERE initiator_id = :user_id
    AND started_at <= :erased_until
    AND ended_at IS NOT NULL                                -- unless running
    AND ended_at IS NULL AND :running                       -- optional
    AND (started_at, id) > (:after_started_at, :after_id)   -- optional
ORDER BY started_at ASC, id ASC
LIMIT :most
