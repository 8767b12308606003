-- Who may do what. Passwords as Argon2id, keys and tickets as SHA-256: what is stored opens nothing.

CREATE TABLE users (
    seq            INTEGER PRIMARY KEY AUTOINCREMENT,
    id             TEXT    NOT NULL UNIQUE,
    username       TEXT    NOT NULL UNIQUE COLLATE NOCASE,
    email          TEXT    UNIQUE COLLATE NOCASE,
    password_hash  TEXT    NOT NULL,
    role           TEXT    NOT NULL CHECK (role IN ('admin', 'member')),
    display_name   TEXT    NOT NULL,
    avatar_url     TEXT,
    timezone       TEXT,
    is_active      INTEGER NOT NULL DEFAULT 1,
    created_at     INTEGER NOT NULL,
    updated_at     INTEGER NOT NULL,
    last_login_at  INTEGER
) STRICT;

CREATE TABLE api_keys (
    seq           INTEGER PRIMARY KEY AUTOINCREMENT,
    id            TEXT    NOT NULL UNIQUE,
    user_id       TEXT    NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    name          TEXT    NOT NULL,
    key_sha256    TEXT    NOT NULL UNIQUE,
    scope         TEXT    NOT NULL CHECK (scope IN ('read', 'operate', 'manage')),
    bots          TEXT,
    expires_at    INTEGER,
    created_at    INTEGER NOT NULL,
    last_used_at  INTEGER
) STRICT;
CREATE INDEX api_keys_by_user ON api_keys (user_id, seq);

CREATE TABLE tickets (
    ticket_sha256  TEXT    NOT NULL PRIMARY KEY,
    user_id        TEXT    NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    bot_id         TEXT    NOT NULL,
    purpose        TEXT    NOT NULL CHECK (purpose IN ('terminal', 'download', 'port')),
    scope          TEXT    NOT NULL CHECK (scope IN ('read', 'operate', 'manage')),
    expires_at     INTEGER NOT NULL
) STRICT;

CREATE TABLE revoked_tokens (
    jti         TEXT    NOT NULL PRIMARY KEY,
    expires_at  INTEGER NOT NULL
) STRICT;

-- Append-only: nothing in the program updates or deletes a row, and the database refuses it.
CREATE TABLE audit (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    at          INTEGER NOT NULL,
    user_id     TEXT    NOT NULL,
    action      TEXT    NOT NULL,
    bot_id      TEXT,
    address     TEXT    NOT NULL,
    outcome     TEXT    NOT NULL,
    request_id  TEXT    NOT NULL
) STRICT;
CREATE INDEX audit_by_bot ON audit (bot_id, seq);
CREATE INDEX audit_by_user ON audit (user_id, seq);
CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit trail is append-only'); END;
CREATE TRIGGER audit_is_not_deleted BEFORE DELETE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit trail is append-only'); END;
