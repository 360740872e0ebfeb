-- insert_users: the people of the demo, in the order of their ids: the first records for all, two are auditors, a few are
-- away or gone.
--
-- A name that somebody else holds is left to them: that user of the demo gets no row, which the log can bear.
--
-- param   user_ids  uuid[]       the users to make
-- param   seed      bigint       decides the names
-- param   newest    timestamptz  the end of the period that the demo covers
-- result  none
-- index   none
WITH words AS (
    -- 47 first and 48 last names have no common factor, nor have the strides below with them: no pair comes twice among
    -- 2,256 users.
    SELECT
        ARRAY[
            'Amara', 'Anika', 'Arjun', 'Astrid', 'Ben', 'Bianca', 'Carlos', 'Chiara', 'Daniel', 'Deepa', 'Diego',
            'Elena', 'Emeka', 'Emma', 'Farah', 'Felix', 'Gabriela', 'Grace', 'Hannah', 'Hiro', 'Ines', 'Ivan',
            'Jonas', 'Julia', 'Kenji', 'Kofi', 'Lars', 'Leila', 'Lucia', 'Malik', 'Maria', 'Mateo', 'Mei', 'Nadia',
            'Nikhil', 'Noah', 'Olga', 'Omar', 'Pavel', 'Priya', 'Rachel', 'Rahul', 'Sofia', 'Tariq', 'Tomas', 'Wei',
            'Yuki'
        ] AS firsts,
        ARRAY[
            'Abbott', 'Adeyemi', 'Ahmed', 'Almeida', 'Andersson', 'Bauer', 'Bianchi', 'Brandt', 'Castillo', 'Chen',
            'Cohen', 'Costa', 'Desai', 'Dubois', 'Eriksen', 'Fischer', 'Fonseca', 'Garcia', 'Gupta', 'Haddad',
            'Hoffmann', 'Ibrahim', 'Ivanova', 'Iyer', 'Jansen', 'Kapoor', 'Kim', 'Kowalski', 'Larsen', 'Lindqvist',
            'Mensah', 'Meyer', 'Moreau', 'Nair', 'Nakamura', 'Novak', 'Okafor', 'Olsen', 'Park', 'Petrov', 'Quinn',
            'Ramirez', 'Rossi', 'Sato', 'Schmidt', 'Silva', 'Tanaka', 'Weber'
        ] AS lasts
),

person AS (
    SELECT
        listed.id,
        listed.place,
        words.firsts[1 + (listed.place * 18 + :seed::bigint) % 47] AS first_name,
        words.lasts[1 + (listed.place * 29 + :seed::bigint) % 48] AS last_name,
        uuid_hash_extended(listed.id, 1) & 1023 AS draw,
        uuid_hash_extended(listed.id, 2) & 16777215 AS seconds
    FROM unnest(:user_ids::uuid[]) WITH ORDINALITY AS listed (id, place)
    CROSS JOIN words
)

INSERT INTO users (id, username, name, avatar_url, status, rbac_roles, created_at, updated_at)
SELECT
    id,
    CASE WHEN place = 1 THEN 'gateway-recorder' ELSE lower(first_name || '-' || last_name) END,
    CASE WHEN place = 1 THEN 'AI gateway' ELSE first_name || ' ' || last_name END,
    CASE
        WHEN place = 1 OR draw % 6 = 0 THEN ''
        ELSE 'https://avatars.example.com/u/' || (draw * 7919 + place * 104729) % 9000000 + 1000000 || '?v=4'
    END,
    CASE WHEN place > 8 AND draw < 25 THEN 'suspended' WHEN place > 8 AND draw < 70 THEN 'dormant' ELSE 'active' END,
    CASE WHEN place = 1 THEN ARRAY['recorder'] WHEN place IN (5, 8) THEN ARRAY['auditor'] ELSE '{}' END,
    :newest::timestamptz - interval '310 days' - seconds * interval '3.141593 seconds',
    :newest::timestamptz - draw * interval '2 hours 3 minutes 17.42 seconds'
FROM person
ON CONFLICT DO NOTHING
