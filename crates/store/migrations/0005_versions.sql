-- What a workspace was at one time, as its runtime keeps it. No reference to containers: a row of those may be
-- replaced while the layers stay; a workspace that is deleted takes its snapshots along in the same transaction.
CREATE TABLE snapshots (
    seq                    INTEGER PRIMARY KEY AUTOINCREMENT,
    bot_id                 TEXT    NOT NULL REFERENCES bots (id) ON DELETE CASCADE,
    container_id           TEXT    NOT NULL,
    runtime_snapshot_name  TEXT    NOT NULL,
    display_name           TEXT    NOT NULL DEFAULT '',
    snapshotter            TEXT    NOT NULL,
    source                 TEXT    NOT NULL,
    created_at             INTEGER NOT NULL,
    UNIQUE (container_id, runtime_snapshot_name)
) STRICT;

CREATE TABLE container_versions (
    container_id  TEXT    NOT NULL,
    version       INTEGER NOT NULL,
    snapshot_seq  INTEGER NOT NULL REFERENCES snapshots (seq) ON DELETE CASCADE,
    created_at    INTEGER NOT NULL,
    UNIQUE (container_id, version)
) STRICT;
CREATE INDEX container_versions_by_snapshot ON container_versions (snapshot_seq);

-- Goes up for as long as the container's row lives, past versions that were deleted.
ALTER TABLE containers ADD COLUMN last_version INTEGER NOT NULL DEFAULT 0;
