-- Archives of `/data` below the data root. No reference to bots: a backup outlives its bot. A row has no file
-- name: generations are renamed, and a file is known by its size and its time, which is `created_at`, else by its digest.
CREATE TABLE backups (
    bot_id         TEXT    NOT NULL,
    created_at     INTEGER NOT NULL,
    sha256         TEXT    NOT NULL,
    size_bytes     INTEGER NOT NULL,
    entries        INTEGER NOT NULL,
    -- Of the bot, at that time.
    owner_user_id  TEXT    NOT NULL,
    -- Read back whole and right; 0 once it was found damaged.
    verified       INTEGER NOT NULL DEFAULT 1,
    PRIMARY KEY (bot_id, created_at)
) STRICT;
