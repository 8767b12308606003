-- Times are microseconds since 1970 in UTC. `seq` is the order of making: the newest row is the one
-- with the highest seq, whatever the clock said.

CREATE TABLE bots (
    seq            INTEGER PRIMARY KEY AUTOINCREMENT,
    id             TEXT    NOT NULL UNIQUE,
    owner_user_id  TEXT    NOT NULL,
    display_name   TEXT    NOT NULL,
    avatar_url     TEXT,
    timezone       TEXT,
    is_active      INTEGER NOT NULL DEFAULT 1,
    guest_enabled  INTEGER NOT NULL DEFAULT 0,
    status         TEXT    NOT NULL CHECK (status IN ('creating', 'ready', 'deleting')),
    metadata       TEXT    NOT NULL DEFAULT '{}',
    created_at     INTEGER NOT NULL,
    updated_at     INTEGER NOT NULL
) STRICT;
CREATE INDEX bots_by_owner ON bots (owner_user_id, seq);

CREATE TABLE bot_members (
    bot_id      TEXT    NOT NULL REFERENCES bots (id) ON DELETE CASCADE,
    user_id     TEXT    NOT NULL,
    role        TEXT    NOT NULL CHECK (role IN ('viewer', 'operator', 'manager')),
    created_at  INTEGER NOT NULL,
    PRIMARY KEY (bot_id, user_id)
) STRICT;
CREATE INDEX bot_members_by_user ON bot_members (user_id);

-- What went wrong in the background and has to be shown until it is mended: one row per kind of check.
CREATE TABLE bot_faults (
    bot_id      TEXT    NOT NULL REFERENCES bots (id) ON DELETE CASCADE,
    check_type  TEXT    NOT NULL,
    message     TEXT    NOT NULL,
    at          INTEGER NOT NULL,
    PRIMARY KEY (bot_id, check_type)
) STRICT;

CREATE TABLE containers (
    seq              INTEGER PRIMARY KEY AUTOINCREMENT,
    bot_id           TEXT    NOT NULL REFERENCES bots (id) ON DELETE CASCADE,
    container_id     TEXT    NOT NULL UNIQUE,
    container_name   TEXT    NOT NULL,
    image            TEXT    NOT NULL,
    image_digest     TEXT,
    snapshotter      TEXT    NOT NULL,
    status           TEXT    NOT NULL CHECK (status IN ('created', 'running', 'stopped', 'error')),
    reason           TEXT,
    desired          TEXT    NOT NULL CHECK (desired IN ('running', 'stopped')),
    namespace        TEXT    NOT NULL,
    auto_start       INTEGER NOT NULL DEFAULT 1,
    container_path   TEXT    NOT NULL DEFAULT '/data',
    cdi_devices      TEXT    NOT NULL DEFAULT '[]',
    env              TEXT    NOT NULL DEFAULT '{}',
    limits_wanted    TEXT    NOT NULL DEFAULT '{}',
    limits_applied   TEXT,
    created_at       INTEGER NOT NULL,
    updated_at       INTEGER NOT NULL,
    last_started_at  INTEGER,
    last_stopped_at  INTEGER
) STRICT;
CREATE INDEX containers_by_bot ON containers (bot_id, seq);

-- No reference to bots: an operation outlives its bot.
CREATE TABLE operations (
    seq            INTEGER PRIMARY KEY AUTOINCREMENT,
    id             TEXT    NOT NULL UNIQUE,
    bot_id         TEXT    NOT NULL,
    kind           TEXT    NOT NULL,
    state          TEXT    NOT NULL CHECK (state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')),
    step           TEXT    NOT NULL DEFAULT '',
    request        TEXT    NOT NULL DEFAULT '{}',
    notes          TEXT    NOT NULL DEFAULT '{}',
    outcome        TEXT,
    requested_by   TEXT,
    request_id     TEXT,
    events_from    INTEGER NOT NULL DEFAULT 1,
    error_code     TEXT,
    error_message  TEXT,
    started_at     INTEGER NOT NULL,
    finished_at    INTEGER
) STRICT;
CREATE INDEX operations_by_bot ON operations (bot_id, seq);
CREATE INDEX operations_unfinished ON operations (state) WHERE state IN ('queued', 'running');

CREATE TABLE operation_events (
    operation_id  TEXT    NOT NULL REFERENCES operations (id) ON DELETE CASCADE,
    id            INTEGER NOT NULL,
    data          TEXT    NOT NULL,
    PRIMARY KEY (operation_id, id)
) STRICT;

CREATE TABLE lifecycle_events (
    seq           INTEGER PRIMARY KEY AUTOINCREMENT,
    bot_id        TEXT    NOT NULL,
    container_id  TEXT    NOT NULL,
    event_type    TEXT    NOT NULL,
    payload       TEXT    NOT NULL DEFAULT '{}',
    created_at    INTEGER NOT NULL
) STRICT;
CREATE INDEX lifecycle_events_by_bot ON lifecycle_events (bot_id, seq);

CREATE TABLE idempotency_keys (
    user_id       TEXT    NOT NULL,
    method        TEXT    NOT NULL,
    path          TEXT    NOT NULL,
    key           TEXT    NOT NULL,
    body_sha256   TEXT    NOT NULL,
    operation_id  TEXT,
    status        INTEGER,
    response      TEXT,
    created_at    INTEGER NOT NULL,
    PRIMARY KEY (user_id, method, path, key)
) STRICT;

-- Settings that belong to this data root and are made by the server (such as a base image it built).
CREATE TABLE data_root_settings (
    name   TEXT NOT NULL PRIMARY KEY,
    value  TEXT NOT NULL
) STRICT;
